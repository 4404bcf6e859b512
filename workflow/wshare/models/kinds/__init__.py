"""Kinds of layers whose weights can be shared: a module a kind, and the table of them."""
