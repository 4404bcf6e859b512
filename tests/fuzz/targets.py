"""What is fuzzed: the readers of files that others may send. A target takes bytes and raises nothing but our errors."""

import base64
import contextlib
import hashlib
import json
import tempfile
import zlib
from pathlib import Path

from safetensors.numpy import safe_open, save

from wshare.errors import UserError
from wshare.models.weights_file import read_state
from wshare.packed.format import load_packed


def packed(content: bytes) -> None:
    """A packed file as it is."""
    _read(load_packed, content)


def sealed(content: bytes) -> None:
    """A packed file of version 2 whose hashes fit: u16 length of the index, the index, the payload."""
    size = int.from_bytes(content[:2], "little")
    _read(load_packed, seal(content[2 : 2 + size], content[2 + size :]))


def hashed(content: bytes) -> None:
    """A packed file of version 3 whose hash fits: the payload before it."""
    _read(load_packed, with_hash(content))


def model(content: bytes) -> None:
    """A model file: safetensors or a state dict saved by torch."""
    _read(read_state, content)


TARGETS = {"packed": packed, "sealed": sealed, "hashed": hashed, "model": model}


def _read(reader, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            reader(path)


def seal(text: bytes, payload: bytes) -> bytes:
    """A packed file of an index and a payload, with checksums and hashes made right as far as the index can be read."""
    import numpy as np

    try:
        index = json.loads(text)
    except (ValueError, RecursionError):
        index = None
    if isinstance(index, dict):
        payload = bytes(_with_checksums(index, bytearray(payload)))
        index = {key: value for key, value in index.items() if key != "hash"} | {"payload": _hash(payload)}
        index["hash"] = _hash(json.dumps(index, separators=(",", ":")).encode())
        text = json.dumps(index, separators=(",", ":")).encode()
    metadata = {"wshare": text.decode(errors="replace")}
    return save({"payload": np.frombuffer(payload, np.uint8)}, metadata)


def with_hash(content: bytes) -> bytes:
    """A packed file of version 3, of what comes before its hash."""
    import numpy as np

    payload = content + hashlib.sha256(content).digest()[:8]
    return save({"wshare": np.frombuffer(payload, np.uint8)})


def without_hash(path: Path) -> bytes:
    """What `with_hash` makes this packed file of."""
    with safe_open(path, "numpy") as file:
        return file.get_tensor("wshare").tobytes()[:-8]


def split(path: Path) -> tuple[bytes, bytes]:
    """Index and payload of a packed file of version 2."""
    with safe_open(path, "numpy") as file:
        return file.metadata()["wshare"].encode(), file.get_tensor("payload").tobytes()


def _with_checksums(index: dict, payload: bytearray) -> bytearray:
    start = 0
    # The index may hold anything in any place.
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):
        for kind in ("shared", "folded", "batch_norm", "kept"):
            for entry in index[kind].values():
                size = _section_bytes(kind, entry)
                if size < 4 or start + size > len(payload):
                    return payload
                payload[start : start + 4] = zlib.crc32(payload[start + 4 : start + size]).to_bytes(4, "little")
                start += size
    return payload


def _section_bytes(kind: str, entry: list) -> int:
    if kind in ("shared", "folded"):
        return entry[2]
    shape, kept = ([2, entry[0]], entry[2]) if kind == "batch_norm" else entry
    count = 1
    for axis in shape:
        count *= axis
    return 4 + count * int(kept[1])


def _hash(octets: bytes) -> str:
    return base64.b64encode(hashlib.sha256(octets).digest()).decode().rstrip("=")
