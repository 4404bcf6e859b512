"""Layers as integers with a scale for each output, as runtimes for integers take them.

A weight is step * 2^(exponent of its output / 8) * an integer of 8 bits, from -127 to 127, or of 4, from -7 to 7;
there is no zero point. The format int8 gives every layer 8 bits; int4 gives each 4 or 8, by the slope. `quantise` goes
through these steps, of which only the third depends on the slope:

1. The scale of each output is that of least squared error, its weights rounded to the nearest, each counted by how much
   its input varies (`_exponents`).
2. Error feedback, least squares of the step, descent and the matching of the variance go as in other formats, with
   integers for shared values (`wshare.quantize.layer.assigned`).
3. Of the widths that the format has, the layer takes that of least loss plus slope times bits (`width_at`).
"""

from dataclasses import dataclass, replace

import numpy as np

from wshare.quantize.codebooks import REACH, STEPS, row_scale
from wshare.quantize.formats import INTEGER_WIDTHS, integer_bits, largest_integer
from wshare.quantize.layer import (
    LEAST_SCALE,
    Assigned,
    Options,
    PreparedLayer,
    Quantised,
    assigned,
    finished,
    high_rate_slope,
    multiples,
)

# Scales that are tried for an output: the one that its largest weight needs, and smaller ones, an eighth of an octave
# each, down to a quarter of it.
SCALES = 17
# Runtimes keep shifts and biases as float32, at one price: they are rounded so many times finer than other formats
# would for the step of the weights, and cost the packed file 3 bits each.
FINER = 8


@dataclass(frozen=True)
class _Made:
    """A layer at one width: exponents of its scales, int16 [outputs], its integers, and the slope that shifts go by."""

    exponents: np.ndarray
    found: Assigned
    slope: float


def quantise(layer: PreparedLayer, slope: float, sensitivity_scale: float, options: Options) -> Quantised:
    """The layer at `slope` nats a bit, with its predicted loss multiplied by `sensitivity_scale`.

    The slope chooses its width and nothing else: shifts and biases are rounded as the integers' step allows.
    """
    made = _made(layer, width_at(layer, slope, sensitivity_scale, options), options)
    scaled = _in_units(layer, made.exponents)
    done = finished(scaled, made.slope, scaled.importance, made.found, options)
    return replace(done, loss=sensitivity_scale * done.loss)


def width_at(layer: PreparedLayer, slope: float, sensitivity_scale: float, options: Options) -> int:
    """Bits of the layer's integers at a slope."""
    widths = INTEGER_WIDTHS[options.format]
    if len(widths) == 1:
        return widths[0]
    outputs = layer.layout.outputs(layer.shape)
    shifts = 0 if layer.norm is None else outputs

    def cost(width: int) -> float:
        loss = sensitivity_scale * _made(layer, width, options).found.loss
        return loss + slope * integer_bits(width, layer.weights.size, outputs, shifts)

    return min(widths, key=cost)


def _made(layer: PreparedLayer, width: int, options: Options) -> _Made:
    """Made once for a layer, however many slopes ask for it."""
    key = (width, options)
    if key not in layer.made:
        inverse_std = layer.inverse_std(options.error_feedback)
        exponents = _exponents(layer, width, inverse_std)
        scaled, step = _in_units(layer, exponents), np.float32(1)
        most = largest_integer(width)
        levels = multiples(np.arange(-most, most + 1), step)
        found = assigned(scaled, 0.0, scaled.importance, inverse_std, levels, np.zeros(len(levels)), step, options)
        slope = high_rate_slope(float(found.step) / FINER, scaled.importance, inverse_std)
        layer.made[key] = _Made(exponents, found, slope)
    return layer.made[key]


def _exponents(layer: PreparedLayer, width: int, inverse_std: np.ndarray) -> np.ndarray:
    """Exponents of the outputs' scales, int16 [outputs], for a step of 1.

    A scale below the one that the largest weight needs clips it, and makes the error of all others smaller.
    """
    groups, _, rows = layer.weights.shape
    most = largest_integer(width)
    weights = layer.weights * _scales(layer).reshape(groups, 1, rows)
    largest = np.abs(weights).max(1, initial=0)
    needed = np.ceil(STEPS * np.log2(np.maximum(largest, LEAST_SCALE * largest.max(initial=0) or 1) / most))
    tried = np.clip(needed - np.arange(SCALES)[:, None, None], -REACH, REACH).astype(np.int16)
    errors = []
    for exponents in tried:
        scale = row_scale(exponents).astype(np.float64)[:, None, :]
        integers = np.clip(np.rint(weights / scale), -most, most)
        errors.append(np.einsum("gcr,gc->gr", (weights - integers * scale) ** 2, inverse_std**-2.0))
    best = np.argmin(errors, axis=0)
    return np.take_along_axis(tried, best[None], axis=0).ravel()


def _scales(layer: PreparedLayer) -> np.ndarray:
    """Scale of each output: float64 [outputs]."""
    if layer.exponents is None:
        return np.ones(layer.layout.outputs(layer.shape))
    return row_scale(layer.exponents).astype(np.float64)


def _in_units(layer: PreparedLayer, exponents: np.ndarray) -> PreparedLayer:
    """The same layer with other scales of its outputs."""
    factor = _scales(layer) / row_scale(exponents)
    by_row = factor.reshape(layer.importance.shape)
    return replace(
        layer,
        weights=layer.weights * by_row[:, None, :],
        importance=layer.importance / by_row**2,
        exponents=exponents,
        shift=None if layer.shift is None else layer.shift * factor,
    )
