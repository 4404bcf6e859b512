"""Hashes of the packed file."""

import base64
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from wshare.files.hdf5 import sha256_arrays


def weights_hash(state: Mapping[str, np.ndarray], names: Iterable[str]) -> str:
    """SHA-256, in base64, over type, shape and bytes of the float32 tensors of these names, in order."""
    return array_hash(*(state[name] for name in names))


def array_hash(*arrays: np.ndarray) -> str:
    """SHA-256 over type, shape and bytes of arrays, in base64."""
    return _text(bytes.fromhex(sha256_arrays(*arrays)))


def byte_hash(content: bytes) -> str:
    """SHA-256 of bytes, in base64."""
    return _text(hashlib.sha256(content).digest())


def _text(digest: bytes) -> str:
    return base64.b64encode(digest).rstrip(b"=").decode()
