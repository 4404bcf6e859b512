"""Weight files: safetensors, or a state dict saved by torch, alone or in a training program's checkpoint."""

import argparse
import contextlib
import logging
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wshare.errors import FormatError, UserError, one_line
from wshare.files.sealed import sha256_file
from wshare.models.file_kinds import SAVE, kind_of_file
from wshare.names import closest

_log = logging.getLogger(__name__)
# Bytes that one byte of an archive may unpack to.
MOST_UNPACKED = 10
# How deep in a checkpoint state dicts are looked for.
DEPTH = 2
# Plain data that training programs keep beside the weights; none of them does anything when it is made.
HARMLESS = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath]


def checked_file(path: Path, sha256: str | None) -> tuple[Path, str]:
    """The path, with a leading ~ expanded, and SHA-256 of a file that is there and has this hash, if one is given."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct path")
    got = sha256_file(path)
    if sha256 and got != sha256.lower():
        raise FormatError(f"{path}: expected sha256 {sha256.lower()}, got {got}; get the file again or correct sha256")
    return path, got


def read_state(path: Path, sha256: str | None = None, key: str | None = None) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a state dict saved by torch, told apart by content.

    Of a checkpoint that holds several state dicts, `key` names one, or a prefix of the names in one. A pickle is read
    with weights_only=True and never otherwise, so nothing in it is executed. `sha256` is checked first. FormatError for
    a file that is damaged or of another kind.
    """
    path, _ = checked_file(path, sha256)
    kind = kind_of_file(path)
    if kind is not None and kind.remedy is not None:
        raise FormatError(f"{path}: {kind.name}, not a file of weights; {kind.remedy}")
    if kind is not None and kind.name == "safetensors file":
        return _under(_read_safetensors(path), path, key)
    content = _read_pickle(path)
    return _under(content, path, key) if _is_state(content) else _state_dict(content, path, key)


def fitting(weights: Mapping[str, Tensor], names: Iterable[str], where: str) -> Mapping[str, Tensor]:
    """Of weights by name those of a network with these names in its state dict.

    Training programs put their networks inside others: all names may then have a prefix, such as `model.` (Lightning)
    or `module.` (data-parallel), and other tensors may stand beside them, which the log tells. Where no prefix fits,
    all are given back. UserError, opening with `where`, if several networks fit.
    """
    # Counters of batch norms are newer than many a checkpoint.
    names = [name for name in names if not name.endswith("num_batches_tracked")]
    if not names or names[0] in weights:
        return weights
    starts = [name.removesuffix(names[0]) for name in weights if name.endswith(f".{names[0]}")]
    found = [start for start in starts if all(start + name in weights for name in names)]
    if len(found) > 1:
        inside = ", ".join(start.removesuffix(".") for start in found)
        raise UserError(f"{where}: holds several networks of this architecture, {inside}; set key to one of them")
    if not found:
        return weights
    start = found[0]
    others = [name for name in weights if not name.startswith(start)]
    beside = f"; {len(others)} other tensors are left out, such as {others[0]}" if others else ""
    _log.info("%s: the network's weights are those under %r%s", where, start, beside)
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


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
        # Of a path torch would go by the name.
        with _harmless_allowed(), open(path, "rb") as file:
            content = None if bad else torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise UserError(
                f"{path}: refused, it asks to run {named.group(1)} while it loads: a pickled module or program, "
                f"not a state dict; {SAVE}"
            ) from None
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
        raise FormatError(f"{path}: neither safetensors nor a torch state dict, or damaged ({reason})") from None
    except _Bomb as error:
        raise FormatError(f"{path}: refused, it {error}; get it again") from None
    except Exception as error:
        # A damaged byte can make torch's reader fail in any way, assertions and seeks included; it has run nothing.
        raise FormatError(f"{path}: damaged ({type(error).__name__}: {one_line(error)}); get it again") from error
    if bad:
        raise FormatError(f"{path}: damaged ({bad} does not have its checksum); get it again")
    return content


def _harmless_allowed() -> contextlib.AbstractContextManager:
    """Within it torch reads what stands beside the weights in common checkpoints: settings, paths, numpy's numbers."""
    from numpy import dtype
    from numpy._core import multiarray

    numbers = [multiarray.scalar, dtype, *(type(dtype(name)) for name in ("f8", "f4", "i8", "i4", "?"))]
    # Files of older numpy call it by the name that it had then.
    older = [(multiarray.scalar, "numpy.core.multiarray.scalar")]
    return torch.serialization.safe_globals([*HARMLESS, *numbers, *older])


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


def _state_dict(content: object, path: Path, key: str | None) -> dict[str, Tensor]:
    """The state dict that a checkpoint holds."""
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict; {SAVE}")
    found = dict(_states(content, DEPTH))
    if not found:
        name, value = next((name, value) for name, value in content.items() if not isinstance(value, Tensor))
        raise UserError(
            f"{path}: {name!r} is a {type(value).__name__}, not a tensor, and no state dict lies below any key; {SAVE}"
        )
    if key in found:
        return found[key]
    if len(found) == 1:
        (name, state), *_ = found.items()
        _log.info("%s: weights are those under %r", path, name)
        return _under(state, path, key)
    if key is not None:
        raise UserError(f"{path}: key: {key!r}: no state dict of that name. {closest(key, found)}")
    raise UserError(f"{path}: holds several state dicts, {', '.join(found)}; set key to one of them")


def _under(state: dict[str, Tensor], path: Path, key: str | None) -> dict[str, Tensor]:
    """The part of a state dict whose names have the prefix `key`, without it; all without a key."""
    if key is None:
        return state
    found = {name.removeprefix(f"{key}."): value for name, value in state.items() if name.startswith(f"{key}.")}
    if not found:
        known = {name.partition(".")[0] for name in state}
        raise UserError(f"{path}: key: {key!r}: no tensor's name begins so. {closest(key, known)}")
    return found


def _states(content: Mapping, depth: int) -> Iterable[tuple[str, dict[str, Tensor]]]:
    """State dicts inside a mapping, each by its key, or keys with dots between them."""
    for name, value in content.items():
        if _is_state(value):
            yield str(name), value
        elif isinstance(value, dict) and depth > 1:
            yield from ((f"{name}.{inner}", state) for inner, state in _states(value, depth - 1))


def _is_state(content: object) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
