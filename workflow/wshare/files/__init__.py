"""Files: atomic, sealed, HDF5, journals, downloads."""
