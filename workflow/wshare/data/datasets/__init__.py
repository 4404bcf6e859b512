"""Sources of images: a module each."""
