"""Other files that hold a compressed network, made from a packed file."""
