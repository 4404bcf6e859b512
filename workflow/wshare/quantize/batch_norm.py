"""Batch norms as scale and shift, and as folded into the layer before them.

A module of its own, so that a change of the packed file's format is none of the search.
"""

from dataclasses import dataclass

import numpy as np

from wshare.quantize.codebooks import row_scale


def norm_scale(variance: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """Scale of a batch norm in evaluation mode, float64 [channels] (Ioffe & Szegedy 2015, algorithm 2).

    `variance` is the running one; `weight` is None for a batch norm without weight and bias.
    """
    deviation = np.sqrt(variance.astype(np.float64) + eps)
    return 1 / deviation if weight is None else weight.astype(np.float64) / deviation


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm as inference needs it: y = scale x + shift, float32 [channels] each."""

    scale: np.ndarray
    shift: np.ndarray
    eps: float
    affine: bool

    def fits_float16(self) -> bool:
        """Whether float16 holds every scale and shift, none as infinity and no scale as zero that is not."""
        rounded = self.to_float16()
        finite = np.isfinite(rounded.scale).all() and np.isfinite(rounded.shift).all()
        return bool(finite and ((rounded.scale == 0) == (self.scale == 0)).all())

    def to_float16(self) -> "BatchNorm":
        """The same in float16."""
        # A value out of range becomes infinite; `fits_float16` tells.
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
