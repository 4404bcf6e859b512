"""Batch norms as scale and shift, and as folded into the layer before them.

A module of its own, so that a change of the packed file's format is none of the search.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wshare.quantize.codebooks import row_scale

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm as inference needs it: y = scale x + shift, float32 [channels] each."""

    scale: np.ndarray
    shift: np.ndarray
    eps: float
    affine: bool

    @classmethod
    def of(cls, module: "nn.Module") -> "BatchNorm":
        """Scale and shift of a module in evaluation mode (Ioffe & Szegedy 2015, algorithm 2)."""
        import torch

        variance, mean = module.running_var.double(), module.running_mean.double()
        weight = module.weight.detach().double() if module.affine else torch.ones_like(variance)
        bias = module.bias.detach().double() if module.affine else torch.zeros_like(variance)
        scale = weight / torch.sqrt(variance + module.eps)
        shift = bias - mean * scale
        return cls(scale.float().numpy(force=True), shift.float().numpy(force=True), module.eps, module.affine)

    def fits_half(self) -> bool:
        """Whether float16 holds every scale and shift, none as infinity and no scale as zero that is not."""
        half = self.halved()
        finite = np.isfinite(half.scale).all() and np.isfinite(half.shift).all()
        return bool(finite and ((half.scale == 0) == (self.scale == 0)).all())

    def halved(self) -> "BatchNorm":
        """The same in float16."""
        # A value out of range becomes infinite; `fits_half` tells.
        with np.errstate(over="ignore"):
            scale, shift = self.scale.astype(np.float16), self.shift.astype(np.float16)
        return BatchNorm(scale, shift, self.eps, self.affine)

    def state(self) -> dict[str, np.ndarray]:
        """Entries of the module's state dict that give this scale and shift."""
        scale, shift = self.scale.astype(np.float32), self.shift.astype(np.float32)
        counter = {"num_batches_tracked": np.zeros((), np.int64)}
        if not self.affine:
            mean, variance = -shift / scale, 1 / scale**2 - np.float32(self.eps)
            return {"running_mean": mean, "running_var": variance} | counter
        unit = np.full_like(scale, 1 - self.eps)
        return {"weight": scale, "bias": shift, "running_mean": np.zeros_like(scale), "running_var": unit} | counter

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """The same for the module `name`, by tensor name."""
        return {f"{name}.{leaf}": array for leaf, array in self.state().items()}


@dataclass(frozen=True)
class FoldedNorm:
    """Batch norm folded into the layer before it: scale 1, shift = steps * unit * 2^(exponents/8) of that layer.

    `tensor` names the layer's shared tensor, such as 'stem.conv.weight'; `steps` is int32 [channels];
    `unit` is used as float32.
    """

    tensor: str
    steps: np.ndarray
    unit: float
    eps: float
    affine: bool

    def norm(self, exponents: np.ndarray | None) -> BatchNorm:
        """The same as scale and shift; `exponents` are those of the shared tensor."""
        shift = self.steps.astype(np.float64) * np.float64(np.float32(self.unit))
        with np.errstate(over="ignore", invalid="ignore"):
            shift = (shift if exponents is None else shift * row_scale(exponents)).astype(np.float32)
        return BatchNorm(np.ones_like(shift), shift, self.eps, self.affine)
