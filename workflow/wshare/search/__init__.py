"""Search methods: what they share, and a module or a folder each."""
