"""Dynamic compression: bits by layer, layers by input, tokens by block, models by request."""
