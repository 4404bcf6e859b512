"""Weight sharing for trained convolutional networks, without retraining."""

__version__ = "0.1.0"


def load_packed(path):
    """State dict of a packed file; see `wshare.packing.load_packed`."""
    # Imported late: stages that need no packing start faster without it.
    from wshare.packing import load_packed as load

    return load(path)
