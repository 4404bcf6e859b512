"""Recurrent layers and cells: weights [gates x hidden, inputs] of what comes in, and of the hidden state before a step.

Both are dense layers on sequences: each of a level and a direction is one of its own.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from wshare.models.kinds import linear
from wshare.models.kinds.kind import Kind, altered, runs_as
from wshare.quantize.codebooks import Layout

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def _weights(module: nn.Module) -> Mapping[str, str | None]:
    """A projection (`proj_size`) is left out: what it takes is seen from nowhere outside."""
    if not runs_as(module, LAYERS):
        return {}
    ends = [
        f"{role}_l{level}{way}"
        for level in range(module.num_layers)
        for way in (("", "_reverse") if module.bidirectional else ("",))
        for role in ("ih", "hh")
    ]
    return {f"weight_{end}": f"bias_{end}" for end in ends}


def _sums(module: nn.Module, leaf: str, arguments: tuple, named: dict, output: Any) -> tuple[Tensor, Tensor]:
    """What the weight is multiplied by: [N, steps, columns], or [all steps, columns] of packed sequences."""
    inputs, hidden = _given(arguments, named)
    level, backwards = int(re.search(r"_l(\d+)", leaf)[1]), leaf.endswith("_reverse")
    if leaf.startswith("weight_ih"):
        taken, lengths = _steps(module, _below(module, inputs, hidden, level, output))
    else:
        made, lengths = _steps(module, _below(module, inputs, hidden, level + 1, output))
        ways = _ways(module)
        own, first = made.chunk(ways, -1)[backwards], _first(hidden, level * ways + backwards)
        taken = _behind(own, first, lengths) if backwards else _before(own, first)
    if isinstance(inputs, PackedSequence):
        taken = taken[torch.arange(taken.shape[1]) < lengths[:, None]]
    return taken, taken


def _given(arguments: tuple, named: dict) -> tuple[Any, Any]:
    given = dict(zip(("input", "hx"), arguments, strict=False)) | named
    return given["input"], given.get("hx")


def _below(module: nn.Module, inputs: Any, hidden: Any, levels: int, output: tuple) -> Any:
    """What the first levels of the module give, in the form of its inputs."""
    if levels in (0, module.num_layers):
        return output[0] if levels else inputs
    count = len(module._flat_weights) // module.num_layers * levels
    part = altered(module, num_layers=levels, _flat_weights=module._flat_weights[:count])
    if hidden is not None:
        own = [state[: levels * _ways(module)] for state in _states(hidden)]
        hidden = tuple(own) if isinstance(hidden, tuple) else own[0]
    return part.forward(inputs, hidden)[0]


def _ways(module: nn.Module) -> int:
    return 2 if module.bidirectional else 1


def _states(hidden: Any) -> tuple[Tensor, ...]:
    """Hidden state, and cell state where there is one."""
    return hidden if isinstance(hidden, tuple) else (hidden,)


def _steps(module: nn.Module, sequence: Any) -> tuple[Tensor, Tensor]:
    """A sequence as [N, steps, features], and the lengths [N]."""
    if isinstance(sequence, PackedSequence):
        return pad_packed_sequence(sequence, batch_first=True)
    if sequence.ndim == 2:
        sequence = sequence[None]
    elif not module.batch_first:
        sequence = sequence.transpose(0, 1)
    return sequence, torch.full((len(sequence),), sequence.shape[1])


def _first(hidden: Any, place: int) -> Tensor | None:
    """The hidden state [N, hidden] that a level starts with in one direction; None for zeros."""
    if hidden is None:
        return None
    state = _states(hidden)[0][place]
    return state[None] if state.ndim == 1 else state


def _before(made: Tensor, first: Tensor | None) -> Tensor:
    """The hidden states before each step, of those behind it, [N, steps, hidden]."""
    first = torch.zeros_like(made[:, 0]) if first is None else first
    return torch.cat([first[:, None], made[:, :-1]], 1)


def _behind(made: Tensor, first: Tensor | None, lengths: Tensor) -> Tensor:
    """The same in the other direction, which starts at the end of each sequence."""
    states = torch.cat([made[:, 1:], torch.zeros_like(made[:, :1])], 1)
    states[torch.arange(len(made)), lengths - 1] = 0 if first is None else first
    return states


def _cell_weights(module: nn.Module) -> Mapping[str, str | None]:
    return {"weight_ih": "bias_ih", "weight_hh": "bias_hh"} if runs_as(module, CELLS) else {}


def _cell_sums(module: nn.Module, leaf: str, arguments: tuple, named: dict, output: Any) -> tuple[Tensor, Tensor]:
    inputs, hidden = _given(arguments, named)
    if leaf == "weight_ih":
        return inputs, inputs
    state = inputs.new_zeros(*inputs.shape[:-1], module.hidden_size) if hidden is None else _states(hidden)[0]
    return state, state


_LAYER = Kind(LAYERS, lambda module: Layout(), linear.KIND.positions, linear.KIND.inputs, _weights, _sums)
_CELL = Kind(CELLS, lambda module: Layout(), linear.KIND.positions, linear.KIND.inputs, _cell_weights, _cell_sums)
KINDS = (_LAYER, _CELL)
