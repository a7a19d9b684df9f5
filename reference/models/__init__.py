"""Where things are in a model, and the model that ships with the book."""
