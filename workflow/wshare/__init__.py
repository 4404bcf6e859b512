"""Weight sharing for trained convolutional networks, without retraining.

`compress` compresses a network in memory, `compress_data_free` without any images. `load` fills a network with the
weights of a packed file, and `load_packed` reads a packed file as a state dict.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wshare.api import Result, compress, load
    from wshare.data_free import compress_data_free
    from wshare.packed.format import load_packed

__version__ = "0.1.0"
__all__ = ["Result", "compress", "compress_data_free", "load", "load_packed"]


def __getattr__(name: str) -> object:
    """What `__all__` names."""
    # Imported late: torch takes seconds, and stages that need none of this start without it.
    if name == "load_packed":
        from wshare.packed.format import load_packed

        return load_packed
    if name == "compress_data_free":
        from wshare.data_free import compress_data_free

        return compress_data_free
    if name in __all__:
        from wshare import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
