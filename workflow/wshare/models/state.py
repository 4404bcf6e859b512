"""The weights of a network: checked, filled in, and taken out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wshare.errors import UserError

CPU = torch.device("cpu")


def fast(model: nn.Module, device: torch.device = CPU) -> nn.Module:
    """The model on a device, with its convolutions in the order in which float32 kernels are fastest there.

    On a CPU that is channels_last, about twice as fast; on a GPU the usual one, by up to a sixth. Every evaluation uses
    it, since the order of sums differs between the two.
    """
    order = torch.contiguous_format if device.type == "cuda" else torch.channels_last
    return model.to(device, memory_format=order)


def check_finite(module: nn.Module, origin: str) -> None:
    """UserError, opening with `origin`, if a parameter or a statistic is not finite."""
    for name, value in module.state_dict().items():
        # Quantized modules of a user keep other things than tensors; `state_of` tells.
        wrong = value.numel() - int(torch.isfinite(value).sum()) if isinstance(value, Tensor) else 0
        if wrong:
            raise UserError(
                f"{origin}: {name} holds {wrong} NaN or infinite values of {value.numel()}; get the weights again"
            )


def load_state(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Fill `module` with `weights`, strictly; UserError, opening with `origin`, if they do not fit it.

    A name that is tied to another in `module` is filled from it if `weights` has only the other.
    """
    own = module.state_dict(keep_vars=True)
    weights = dict(weights)
    for names in tied(own):
        present = next((name for name in names if name in weights), None)
        if present is not None:
            weights |= {name: weights[present] for name in names if name not in weights}
    try:
        # Not strict: modules may rename old keys while they load, so only the result tells what is missing.
        result = module.load_state_dict(weights, strict=False)
    except RuntimeError:
        misshaped = [
            f"{name} {list(weights[name].shape)} where the network has {list(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ]
        if not misshaped:
            raise
        raise UserError(
            f"{origin}: weights of another shape: {_few(misshaped)}; check architecture, arguments and classes"
        ) from None
    problems = [
        f"{label} {_few(names)}"
        for label, names in (("missing", result.missing_keys), ("unexpected", result.unexpected_keys))
        if names
    ]
    if problems:
        raise UserError(
            f"{origin}: weights do not fit the architecture: {'; '.join(problems)}; check architecture and arguments"
        )


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Contiguous copies in CPU memory of all parameters and buffers; of tied tensors under their first name only.

    No two share memory, so safetensors can save them; `load` fills the other names of tied tensors again.
    """
    own = module.state_dict(keep_vars=True)
    for name, value in own.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name}: the network keeps a {type(value).__name__} in its state; only tensors can be saved"
            )
    aliases = {name for names in tied(own) for name in names[1:]}
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in own.items()
        if name not in aliases
    }


def tied(state: Mapping[str, object]) -> list[list[str]]:
    """Groups of names that stand for one tensor, each in the order of the state dict (taken with keep_vars)."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
