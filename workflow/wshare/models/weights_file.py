"""Weight files: safetensors, or a state dict saved by torch."""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wshare.errors import FormatError, UserError, one_line
from wshare.files.sealed import sha256_file

# Keys under which training programs keep the state dict beside the optimizer and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# Bytes that one byte of an archive may unpack to.
MOST_UNPACKED = 10
CONVERT = (
    "where you trust it, load it and save torch.save(model.state_dict(), 'weights.pth'), or better a safetensors file"
)


def read_state(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a state dict saved by torch, told apart by content.

    Wrappers such as {"state_dict": ...} and the prefix "module." of data-parallel training are taken off. A pickle
    is read with weights_only=True and never otherwise, so nothing in it is executed. `sha256` is checked first.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct path")
    if sha256:
        got = sha256_file(path)
        if got != sha256.lower():
            raise FormatError(
                f"{path}: expected sha256 {sha256.lower()}, got {got}; get the file again or correct sha256"
            )
    with open(path, "rb") as file:
        start = file.read(9)
    # safetensors: eight bytes of header length, then JSON.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _without_prefix(_read_safetensors(path))
    return _without_prefix(_unwrapped(_read_pickle(path), path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: damaged safetensors file ({one_line(error)}); get it again") from None


class _Bomb(Exception):
    """An archive that holds more than its size."""


def _read_pickle(path: Path) -> object:
    try:
        bad = _damaged_member(path)
        content = None if bad else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise UserError(
                f"{path}: refused, it asks to run {named.group(1)} while it loads: a pickled module or program, "
                f"not a state dict; {CONVERT}"
            ) from None
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
        raise FormatError(f"{path}: neither safetensors nor a torch state dict, or damaged ({reason})") from None
    except _Bomb as error:
        raise FormatError(f"{path}: refused, it {error}; get it again") from None
    except Exception as error:
        if "TorchScript" in str(error):
            raise UserError(f"{path}: refused, it is a TorchScript program, not a state dict; {CONVERT}") from None
        # A damaged byte can make torch's reader fail in any way, assertions and seeks included; it has run nothing.
        raise FormatError(f"{path}: damaged ({type(error).__name__}: {one_line(error)}); get it again") from error
    if bad:
        raise FormatError(f"{path}: damaged ({bad} does not have its checksum); get it again")
    return content


def _damaged_member(path: Path) -> str | None:
    """First file of a zip archive whose checksum is wrong: torch writes checksums but never compares them."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
        # torch compresses programs only, which another message refuses, and those by a factor of two or so.
        if unpacked > MOST_UNPACKED * size:
            raise _Bomb(f"unpacks to {unpacked} bytes from {size}, which torch never writes")
        return archive.testzip()


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    for _ in range(2):
        inner = [content[key] for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        if inner:
            content = inner[0]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict; {CONVERT}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor; save only the state dict, "
                f"or keep it under one of the keys {', '.join(WRAPPERS)}"
            )
    return content


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): value for name, value in weights.items()}
    return weights
