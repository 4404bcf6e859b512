"""Where networks come from: a module for each source, imported only when a model names it.

A source has `fetch(settings, cache)`, which gives a `models.Fetched`, and, where it brings its own architectures,
`build(name, arguments)`, which gives the network without weights. `models.SOURCES` and `models.BUILDERS` list them.
"""
