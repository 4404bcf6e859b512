"""Search methods that choose the number of shared values of each layer."""
