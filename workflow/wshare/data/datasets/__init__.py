"""Where images come from: a module for a source or a few, imported when a dataset names it; table.py lists them."""
