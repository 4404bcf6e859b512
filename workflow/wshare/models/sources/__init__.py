"""Where networks come from: a module for each source, imported only when a model names it; table.py lists them."""
