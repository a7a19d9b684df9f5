"""What a device can do at most, what a layer asks of it, and how to measure both without fooling oneself."""
