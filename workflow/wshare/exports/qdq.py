"""ONNX with weights as integers of 8 or 4 bits and a scale for each output: DequantizeLinear, as quantised networks."""

import math
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from wshare.errors import UserError
from wshare.exports.onnxfile import Nodes, write_graph
from wshare.quantize.codebooks import Shared, row_scale
from wshare.quantize.formats import largest_integer

# The first operator sets with DequantizeLinear by axis, and with integers of 4 bits.
OPSETS = {8: 13, 4: 21}


def write_qdq(packed: Path, output: Path, model: nn.Module, example: torch.Tensor) -> None:
    """Write the network with integer weights, otherwise as `write_onnx` does; activations stay float32.

    A layer has integers of 4 bits where these hold its values, else of 8. A weight is scale * integer in float32, and
    so may differ from the packed file's in the last of 24 bits. UserError for a packed file with a layer whose shared
    values are no multiples, by integers of 8 bits, of one step.
    """
    write_graph(packed, output, model, example, _Integers)


def grid_of(codebook: np.ndarray) -> tuple[float, np.ndarray] | None:
    """The largest step that all shared values are multiples of, and which, int8 [k]; None if 8 bits do not hold them.

    It is exact: a float32 is an integer times a power of two, and the step the greatest common divisor of these.
    """
    mantissas, exponents = np.frexp(codebook.astype(np.float64))
    whole = [int(mantissa * (1 << 24)) for mantissa in mantissas]
    used = [int(exponent) for exponent, value in zip(exponents, whole, strict=True) if value]
    if not used:
        return 1.0, np.zeros(len(codebook), np.int8)
    least = min(used)
    if max(used) - least > 24:
        return None
    values = [value << int(exponent) - least if value else 0 for value, exponent in zip(whole, exponents, strict=True)]
    divisor = math.gcd(*values)
    places = np.array([value // divisor for value in values])
    if np.abs(places).max() > largest_integer(8):
        return None
    return math.ldexp(divisor, least - 24), places.astype(np.int8)


class _Integers(Nodes):
    """Nodes that make weights of integers and scales."""

    WHAT = "integers of 4 bits"

    @classmethod
    def least_opset(cls, shared: dict[str, Shared], packed: Path) -> int:
        """The first operator set with integers of the widths that these tensors take; UserError if one takes none."""
        widths = []
        for name, tensor in shared.items():
            grid = grid_of(tensor.codebook)
            if grid is None:
                raise UserError(
                    f"export onnx-qdq: {packed}: the {len(tensor.codebook)} shared values of {name!r} are no integers "
                    "of 8 bits times a step; search with options.format int8 or int4, or export onnx"
                )
            widths.append(_width(grid[1]))
        return max((OPSETS[width] for width in widths), default=OPSETS[8])

    def expand(self, name: str, tensor: Shared, transposed: bool = False) -> None:
        """Compute the weight `name`."""
        step, places = grid_of(tensor.codebook)
        layout, shape = tensor.layout, tensor.indices.shape
        integers = places[tensor.indices.T if transposed else tensor.indices]
        kept = self.integers(integers, _width(places))
        if tensor.exponents is None:
            self.add("DequantizeLinear", [kept, self.constant(np.float32(step))], name)
            return
        scales = (step * row_scale(tensor.exponents).astype(np.float64)).astype(np.float32)
        if layout.axis == 0 or layout.groups == 1:
            axis = len(shape) - 1 - layout.axis if transposed else layout.axis
            self.add("DequantizeLinear", [kept, self.constant(scales)], name, axis=axis)
            return
        # Outputs of other axes, counted group by group, have no axis of their own.
        unscaled = self.add("DequantizeLinear", [kept, self.constant(np.float32(1))])
        self.add("Mul", [unscaled, self.constant(layout.per_output(scales, shape))], name)

    def integers(self, values: np.ndarray, width: int) -> str:
        """Name of a constant of integers, int8; those of 4 bits lie two in a byte, the first in its lower half."""
        if width == 8:
            return self.constant(np.ascontiguousarray(values))
        flat = values.ravel().astype(np.uint8) & 15
        flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
        name = f"wshare.constant{len(self.names)}"
        self.names.add(name)
        raw = (flat[::2] | flat[1::2] << 4).tobytes()
        self.graph.initializer.append(
            TensorProto(name=name, data_type=TensorProto.INT4, dims=values.shape, raw_data=raw)
        )
        return name


def _width(places: np.ndarray) -> int:
    """Bits of the integers that a layer takes."""
    return 4 if np.abs(places.astype(np.int16)).max(initial=0) <= largest_integer(4) else 8
