"""Plain tensors: safetensors in float32 and float16, and a PyTorch state dict."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wshare.errors import UserError
from wshare.files.atomic import atomic
from wshare.packed.format import load_packed


def write_float32(packed: Path, output: Path) -> None:
    """Write all tensors as they are; of tied tensors only the first name, as safetensors wants it."""
    _save(_untied(load_packed(packed)), output)


def write_float16(packed: Path, output: Path) -> None:
    """The same with float32 tensors rounded to float16; UserError for a value beyond its range."""
    state = _untied(load_packed(packed))
    for name, tensor in state.items():
        if tensor.dtype == torch.float32:
            state[name] = tensor.half()
            if not torch.isfinite(state[name]).all():
                raise UserError(f"export dense16: {name} has values beyond the range of float16; use dense")
    _save(state, output)


def write_state_dict(packed: Path, output: Path) -> None:
    """Write what `load_packed` gives, for `torch.load` and `load_state_dict`; tied tensors are stored once."""
    state = load_packed(packed)
    first = _first_names(state)
    with atomic(output) as temporary:
        torch.save({name: state[first[name]] for name in state}, temporary)


def _save(state: dict[str, Tensor], output: Path) -> None:
    with atomic(output) as temporary:
        save_file(state, temporary)


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] for name, first in _first_names(state).items() if name == first}


def _first_names(state: dict[str, Tensor]) -> dict[str, str]:
    """For each name the first one of the same tensor; an empty tensor has no place in memory to tell it by."""
    names: dict[object, str] = {}
    return {name: names.setdefault(tensor.data_ptr() or name, name) for name, tensor in state.items()}
