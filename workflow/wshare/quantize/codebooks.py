"""Codebooks, weights replaced by their values, and how a weight's axes are laid out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Exponents count eighths of an octave. The constants are 2^(i/8) rounded to float32; `exp2` differs between platforms.
STEPS = 8
# Largest exponent: 2^126.
REACH = STEPS * 126
EIGHTHS = np.array(
    [1, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081], dtype=np.float32
)  # fmt: skip
# Weights looked up at once: numpy widens indices to 8 bytes.
BLOCK = 1 << 16


@dataclass(frozen=True)
class Sweep:
    """Codebooks and inertia of one layer for k = 1 .. K.

    `inertia` and `weighted_inertia` are float64 [K], entry k - 1 for k shared values, in squared
    weight units (times importance). `codebooks` is float32 [K (K + 1) / 2], one codebook after another.
    K is `k_max` or the number of distinct weights, whichever is less.
    """

    inertia: np.ndarray
    weighted_inertia: np.ndarray
    codebooks: np.ndarray

    def codebook(self, k: int) -> np.ndarray:
        """Shared values of the k-value solution: float32 [k], ascending; k is clamped to K."""
        k = min(k, len(self.inertia))
        return self.codebooks[k * (k - 1) // 2 : k * (k + 1) // 2]


def nearest_indices(weights: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Index of the nearest shared value of each weight: uint16, the shape of `weights`; ties go down."""
    wide = codebook.astype(np.float64)
    middles = (wide[1:] + wide[:-1]) / 2
    return np.searchsorted(middles, weights, side="left").astype(np.uint16)


def shared_weight(weight: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Each weight replaced by its nearest shared value: float32, the shape of `weight`."""
    return codebook[nearest_indices(weight, codebook)]


def row_scale(exponents: np.ndarray) -> np.ndarray:
    """2^(e/8) of each exponent: float32 [rows], the same on every platform; infinite or 0 beyond float32's range."""
    octaves, eighths = np.divmod(exponents.astype(np.int32), STEPS)
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(EIGHTHS[eighths], octaves)


@dataclass(frozen=True)
class Layout:
    """Which axis of a layer's weight counts its outputs, and in how many groups the layer works.

    With axis 0 a weight is [outputs, inputs / groups, ...]; with another axis it is [inputs, ...] with outputs / groups
    along that axis. In both cases the groups divide the first axis. Outputs are counted group by group.
    """

    axis: int = 0
    groups: int = 1

    def outputs(self, shape: Sequence[int]) -> int:
        """Outputs of a layer whose weight has this shape."""
        return shape[0] if self.axis == 0 else shape[self.axis] * self.groups

    def split(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape with the groups as an axis of their own before it; `column` broadcasts against it."""
        return (self.groups, shape[0] // self.groups, *shape[1:])

    def column(self, shape: Sequence[int]) -> tuple[int, ...]:
        """What one number for each output, [outputs], is reshaped to before it meets a weight reshaped to `split`."""
        split = self.split(shape)
        return tuple(size if place in (0, self.axis + 1) else 1 for place, size in enumerate(split))

    def to_matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight as [groups, columns, rows]: a row for each output of a group, a column for each of its inputs."""
        split, rows = self.split(weight.shape), self.outputs(weight.shape) // self.groups
        columns = weight.size // max(1, self.groups * rows)
        return np.moveaxis(weight.reshape(split), self.axis + 1, -1).reshape(self.groups, columns, rows)

    def from_matrix(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The weight of this shape, in C order, from what `to_matrix` gave."""
        split = list(self.split(shape))
        split.append(split.pop(self.axis + 1))
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(split), -1, self.axis + 1)).reshape(shape)

    def per_output(self, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """One number for each output, [outputs], as an array that broadcasts against a weight of this shape."""
        column = self.column(shape)
        if self.groups == 1:
            return values.reshape(column[1:])
        wide = (column[0], self.split(shape)[1], *column[2:])
        return np.broadcast_to(values.reshape(column), wide).reshape(-1, *wide[2:])


@dataclass(frozen=True)
class Shared:
    """A shared tensor: value = 2^(exponents/8) of its output times codebook[indices].

    `codebook` is float32 [k], ascending; `indices` uint16, the tensor's shape; `exponents` int16 [outputs] in
    eighths of an octave, None if all are 0; `layout` tells which output a value belongs to. `step` says that the
    codebook's values are multiples of it, by integers, and that a file may be made of these.
    """

    codebook: np.ndarray
    indices: np.ndarray
    exponents: np.ndarray | None = None
    layout: Layout = Layout()
    step: float | None = None

    def weight(self) -> np.ndarray:
        """Weights: float32, the tensor's shape."""
        values = np.empty(self.indices.shape, np.float32)
        flat, indices = values.reshape(-1), np.ascontiguousarray(self.indices).reshape(-1)
        for start in range(0, indices.size, BLOCK):
            flat[start : start + BLOCK] = self.codebook[indices[start : start + BLOCK]]
        if self.exponents is not None:
            self._scale(values)
        return values

    def _scale(self, values: np.ndarray) -> None:
        """Multiply the values of each output, in place, by its scale."""
        if self.layout.axis:
            split, column = self.layout.split(values.shape), self.layout.column(values.shape)
            wide = values.reshape(split)
            wide *= row_scale(self.exponents).reshape(column)
            return
        for start in range(0, len(values), BLOCK):
            scale = row_scale(self.exponents[start : start + BLOCK])
            values[start : start + BLOCK] *= scale.reshape(-1, *[1] * (values.ndim - 1))
