"""Where images come from: a module for one source or a few, imported only when a dataset names it; table.py lists them."""
