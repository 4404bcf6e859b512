"""nn.MultiheadAttention: the projections of query, key and value, in one weight or in three, and that of the output."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wshare.models.kinds import linear
from wshare.models.kinds.kind import Kind, altered, runs_as
from wshare.quantize.codebooks import Layout

TYPES = (nn.MultiheadAttention,)
NAMES = ("query", "key", "value")


@contextmanager
def called_as_modules() -> Iterator[None]:
    """torch's fast path of transformers, which uses the weights of parts without calling them, is not taken."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _together(module: nn.Module) -> Mapping[str, str | None]:
    return {"in_proj_weight": "in_proj_bias"} if runs_as(module, TYPES) and module._qkv_same_embed_dim else {}


def _apart(module: nn.Module) -> Mapping[str, str | None]:
    """The three projections have one bias among them, which is not corrected."""
    if not runs_as(module, TYPES):
        return {}
    inner = {} if module._qkv_same_embed_dim else dict.fromkeys(f"{name[0]}_proj_weight" for name in NAMES)
    return inner | {"out_proj.weight": "out_proj.bias"}


def _three(module: nn.Module, leaf: str, arguments: tuple, named: dict, output: Any) -> tuple[Any, Any]:
    """Query, key and value, [N, length, features] each."""
    given = dict(zip(NAMES, arguments, strict=False)) | named
    sequences = tuple(_batched(module, given[name]) for name in NAMES)
    return sequences, sequences


def _batched(module: nn.Module, sequence: Tensor) -> Tensor:
    if sequence.ndim == 2:
        return sequence[None]
    return sequence if module.batch_first else sequence.transpose(0, 1)


def _places(module: nn.Module, sequences: tuple[Tensor, ...]) -> int:
    """Where lengths differ, each goes round as often as it takes to end with the others."""
    return math.lcm(*(sequence.shape[1] for sequence in sequences))


def _inputs(module: nn.Module, sequences: tuple[Tensor, ...], output: Any, places: Tensor) -> Tensor:
    samples = [sequence[:, places % sequence.shape[1]] for sequence in sequences]
    return torch.stack([sample.reshape(-1, sample.shape[-1]).mT for sample in samples])


def _one(module: nn.Module, leaf: str, arguments: tuple, named: dict, output: Any) -> tuple[Tensor, Tensor]:
    """What one of the weights is multiplied by, [N, length, features]."""
    if leaf == "out_proj.weight":
        taken = _batched(module, _unprojected(module, arguments, named))
    else:
        taken = _three(module, leaf, arguments, named, output)[0]["qkv".index(leaf[0])]
    return taken, taken


def _unprojected(module: nn.Module, arguments: tuple, named: dict) -> Tensor:
    """What the module gives with an output projection that changes nothing."""
    own = module.out_proj.weight
    identity = nn.Linear(*own.shape, device=own.device, dtype=own.dtype)
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    return altered(module, _modules={"out_proj": identity}).forward(*arguments, **named)[0]


# Each third of the weight sums inputs of its own, which the groups of a convolution do as well.
_TOGETHER = Kind(TYPES, lambda module: Layout(0, 3), _places, _inputs, _together, _three)
_APART = Kind(TYPES, lambda module: Layout(), linear.KIND.positions, linear.KIND.inputs, _apart, _one)
KINDS = (_TOGETHER, _APART)
