"""One layer quantised at a slope: entropy-constrained codebooks, error feedback and what goes with it.

`prepare` does once what does not depend on the slope; `quantise` then goes through these steps:

1. The slope is lowered where the layer would be erased as a whole (`_erasing_slope`).
2. A codebook and its code lengths are found for the weights as they are (`_levels`).
3. Each weight takes the value of least error and code length, one input after another; the error that it makes is
   handed on to the inputs still to come, which make up for it (`error_feedback.assign_with_feedback`). Values that no
   weight takes fall away, and code lengths follow the new counts; with entropy coding this is done twice.
4. The values are solved for, by least squares of the output error, with the indices as they are (`_least_squares`).
5. Indices move up or down one at a time while that lowers error plus code length (`error_feedback.descend`).
6. All values are multiplied by one number that gives the outputs the variance that they had (`_variance_matched`).
7. A small layer goes through 2 to 6 with uniform grids, too, whose values need no table, and takes what costs least.
8. What the change does to the outputs' means is put into the bias, or into the folded batch norm (`finished`).

The loss of a network, in nats of Kullback-Leibler divergence, is taken to be the sum over layers of
1/2 sum_o F_o (dw_o^T C dw_o) / E, with dw_o the change of the weights of output o, C the covariance of its
inputs, E their energy, and F_o the mean over outputs of the Fisher information of one output's weights. It is a
Kronecker factorisation (Martens & Grosse 2015) whose scale comes from the Fisher information of the weights
themselves, so that it counts what the positions of an image have in common.

A weight is worked on as a matrix [groups, columns, rows], with a row for each output of a group and a column for each
of the inputs that this output sums; `Layout` makes it of a weight and back.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from wshare.quantize import ecsq
from wshare.quantize import error_feedback as feedback
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import REACH, STEPS, Layout, Shared, Sweep, row_scale
from wshare.quantize.cost import index_bits
from wshare.quantize.covariance import Covariance, shrunk
from wshare.quantize.formats import CODINGS, INTEGER_WIDTHS, coreml_bits, integer_bits, integer_width, palette_sizes
from wshare.quantize.kmeans import sweep
from wshare.quantize.statistics import InputStatistics

# Added to the diagonal of the covariance, as a share of its mean. Tuned on EfficientNet-Lite0.
DAMPING = 0.05
# Least energy of the inputs of a group, as a share of the mean over groups: dead channels are not for free. Tuned on
# EfficientNet-Lite0.
LEAST_ENERGY = 0.02
# Least scale of a row, as a share of the layer's largest.
LEAST_SCALE = 2.0**-16
# Variance of outputs, as a share of what it was, below which it is not taken from its growth.
LEAST_VARIANCE = 0.01
# Keeps layers without any input or importance away from a division by zero.
TINY = 1e-30
# Code lengths depend on the assignment and the assignment on them.
PASSES = 2
# Products that the codebook's normal equations may take; beyond, every n-th output stands for all.
NORMAL_PRODUCTS = 2e8
# Weight, as a share of the mean diagonal of the normal equations, by which levels are drawn to where they were: those
# that few weights use stay put. Tuned on EfficientNet-Lite0.
PULL = 1e-3
# Levels are rounded to float16 if none moves further than one of so many parts of the least gap between two levels
# and of the largest level: such a move costs next to nothing, and halves the codebook. Tuned on EfficientNet-Lite0.
ROUNDED_GAP, ROUNDED_RANGE = 20, 500
# A level costs its value, as float16, and its frequency.
LEVEL_BITS = 32
MOST_INDEX_BITS = 8
# Of layers up to so many weights grids are tried; a large one's codebook takes no share of its bytes that counts.
GRID_WEIGHTS = 1 << 14
# Their steps, as shares of that of a uniform quantizer of high rate at this slope, and most values. Tuned on lenet5 and
# resnet_ds.
GRID_STEPS = (0.8, 1.0, 1.2)
GRID_VALUES = 4096
# What adaptive coding takes beyond the entropy: for a grid, and for each of its values (measured on resnet_ds).
GRID_BITS, GRID_VALUE_BITS = 48, 4
# Rows' scales are multiples of so many eighths of an octave at most.
COARSEST_SCALE = 8
# A shift may err by twice the cell of a weight that sees an input of energy 1 (measured on EfficientNet-Lite0: no loss
# of quality).
SHIFT_CELLS = 2
# The largest shift, or bias, is at least so many steps.
LEAST_STEPS = 64
_SWITCHES = (
    "error_feedback",
    "bias_correction",
    "least_squares",
    "assignment_descent",
    "variance_matching",
    "keep_zeros",
)


@dataclass(frozen=True)
class Options:
    """What may be turned off, and on: `keep_zeros`, by which weights of exactly 0 stay 0.

    `format` is "entropy", "fixed" or "coreml", how indices are to be coded; or "int8" or "int4", whose layers
    `wshare.quantize.integers` quantises.
    """

    format: str = "entropy"
    error_feedback: bool = True
    bias_correction: bool = True
    least_squares: bool = True
    assignment_descent: bool = True
    variance_matching: bool = True
    keep_zeros: bool = False

    @classmethod
    def of(cls, options: dict) -> "Options":
        """From the options of a search in the configuration."""
        switches = {key: options[key] for key in _SWITCHES}
        return cls(format=options["format"], **switches)


@dataclass(frozen=True)
class PreparedLayer:
    """One layer, as far as it does not depend on the slope.

    `shape` and `layout` are those of its weight. `weights` is float64 [groups, columns, rows] in units of the row's
    scale, 2^(exponents / 8); `inputs` the covariance of its inputs; `importance` [groups, rows] is the loss in nats of
    a unit of squared output error; `mean` [groups, columns] that of the inputs where the layer has somewhere to correct
    its outputs' means, else None. `exponents` and `shift`, that of the folded batch norm, if any, in row units, are
    [outputs].
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    weights: np.ndarray
    inputs: Covariance
    importance: np.ndarray
    exponents: np.ndarray | None
    mean: np.ndarray | None
    norm: BatchNorm | None
    shift: np.ndarray | None

    @property
    def covariance(self) -> np.ndarray:
        """Of the inputs: float32 [groups, columns, columns], made anew, or its diagonal [groups, columns]."""
        return self.inputs.whole

    @cached_property
    def variance(self) -> np.ndarray:
        """Of each output: float64 [groups, rows]."""
        return _variance(self.covariance, self.weights)

    @cached_property
    def made(self) -> dict:
        """What was made of the layer and depends on no slope, by what it was made with."""
        return {}

    @cached_property
    def binned(self) -> ecsq.Binned:
        """The weights by bin: to sort them takes longer than to find a codebook."""
        return ecsq.binned(self.weights)

    @cached_property
    def sweep(self) -> Sweep:
        """Codebooks of all k by k-means, for indices of fixed width."""
        return sweep(self.weights, k_max=2**MOST_INDEX_BITS)

    @cached_property
    def sweep_with_zero(self) -> Sweep:
        """The same with 0 in each codebook, if some weight is 0."""
        return sweep(self.weights, k_max=2**MOST_INDEX_BITS, keep_zeros=True)

    def inverse_std(self, error_feedback: bool) -> np.ndarray:
        """One over the standard deviation of each input: [groups, columns].

        Given the inputs still to come, where errors are fed back to them.
        """
        return self.inputs.factor_diagonal if error_feedback else 1 / np.sqrt(self.inputs.diagonal)


@dataclass(frozen=True)
class Quantised:
    """A layer at one slope: its shared values, the shift that corrects the outputs' means, loss and bits.

    `correction` is float64 [outputs], in the units of the output; `norm` the folded batch norm, if any; `loss` the
    predicted loss in nats, before variances are matched; `bits` analytic: ideal code lengths, or index widths, and all
    tables. `bias_unit`, a power of two, is the step to which a bias may be rounded; `codes_shifts` tells that the bits
    of a shift are those of a code, not of a float32.
    """

    shared: Shared
    correction: np.ndarray
    norm: FoldedNorm | None
    loss: float
    bits: float
    bias_unit: float
    codes_shifts: bool = True

    def with_codebook(self, codebook: np.ndarray, step: float | None) -> "Quantised":
        """With other shared values for the same indices, float32 [k] in ascending order, multiples of `step` if any."""
        return replace(self, shared=replace(self.shared, codebook=codebook, step=step))

    def moved(self, codebook: np.ndarray) -> "Quantised":
        """With shared values near these, [k], as a codebook holds them; as it is where these are out of order.

        The values of a grid stay multiples of a step, which follows the largest of them.
        """
        own, step = self.shared.codebook, self.shared.step
        if step is not None:
            largest = np.abs(own).argmax()
            levels, step = _rescaled(own, np.float32(step), float(codebook[largest]) / (float(own[largest]) or 1.0))
            return self.with_codebook(levels, float(step))
        levels = _rounded(codebook.astype(np.float32))
        return self.with_codebook(levels, None) if (np.diff(levels) > 0).all() else self

    def shifted(self, steps: np.ndarray) -> "Quantised":
        """With other steps of the folded norm's shift, int32 [outputs]."""
        more = _entropy_bits(steps) - _entropy_bits(self.norm.steps) if self.codes_shifts else 0.0
        return replace(self, norm=replace(self.norm, steps=steps), bits=self.bits + more)


@dataclass(frozen=True)
class Assigned:
    """A layer's shared values, the step that they are multiples of if they are, and the weights that take each."""

    levels: np.ndarray
    step: np.float32 | None
    indices: np.ndarray
    counts: np.ndarray
    loss: float

    @property
    def code_bits(self) -> float:
        """Ideal code lengths and the table of values."""
        table = LEVEL_BITS * len(self.levels) if self.step is None else GRID_BITS + GRID_VALUE_BITS * len(self.levels)
        return float(self.counts @ np.log2(self.indices.size / self.counts)) + table


def prepare(
    name: str,
    weight: np.ndarray,
    layout: Layout,
    fisher: float,
    statistics: InputStatistics,
    norm: BatchNorm | None,
    has_bias: bool,
) -> PreparedLayer:
    """A layer ready to be quantised: `weight` is float32, `fisher` the sum of its weights' importance.

    `norm` is the batch norm to fold into it; `has_bias` tells whether it has a bias that can be corrected.
    """
    outputs, groups = layout.outputs(weight.shape), layout.groups
    energy = statistics.energy.sum(1, dtype=np.float64)
    silent = not energy.any()
    energy = np.ones_like(energy) if silent else np.maximum(energy, LEAST_ENERGY * energy.mean())
    mean = statistics.mean.astype(np.float64) if norm or has_bias else None
    covariance = _covariance(statistics, mean)
    scale = np.ones(outputs) if norm is None else norm.scale.astype(np.float64)
    # Channels that training gave up have next to no scale: theirs is rounded to one that is small enough.
    present = np.maximum(np.abs(scale), LEAST_SCALE * np.abs(scale).max(initial=0) or 1)
    unit = present
    if groups > 1:
        # Channels of a depthwise layer see inputs of their own: each gets the scale that suits them.
        unit = unit * np.repeat(_relative_std(covariance, energy), outputs // groups)
    exponents = None if norm is None and groups == 1 else _exponents(unit, weight.size // max(1, outputs))
    rows = np.ones(outputs) if exponents is None else row_scale(exponents).astype(np.float64)
    loss = 0 if silent else 0.5 * fisher / outputs
    importance = loss / np.repeat(energy, outputs // groups) * (rows / present) ** 2
    return PreparedLayer(
        name=name,
        shape=weight.shape,
        layout=layout,
        weights=np.ascontiguousarray(layout.to_matrix(weight) * (scale / rows).reshape(groups, 1, -1)),
        inputs=Covariance(covariance),
        importance=importance.reshape(groups, -1),
        exponents=exponents,
        mean=mean,
        norm=norm,
        shift=None if norm is None else norm.shift / rows,
    )


def _covariance(statistics: InputStatistics, mean: np.ndarray | None) -> np.ndarray:
    """Damped, and shrunk towards its diagonal the more, the fewer samples there are for a column.

    The positions of an image resemble each other: their square root counts as samples. (Shrinkage to the diagonal:
    Schaefer & Strimmer 2005; the weight is a rule of thumb that was measured to generalise.) Where the means of
    the outputs cannot be corrected, the second moment about zero takes its place.
    """
    second = statistics.second
    diagonal = statistics.energy.astype(np.float64)
    if mean is not None:
        diagonal = np.maximum(diagonal - mean**2, 0)
    usual = diagonal.mean(1, keepdims=True)
    floor = DAMPING * np.maximum(usual, LEAST_ENERGY * usual.mean()) + TINY
    if second.ndim == 2:
        return (diagonal + floor).astype(np.float32)
    columns = second.shape[1]
    share = 1 - columns / (columns + statistics.images * np.sqrt(statistics.positions))
    found = shrunk(second, np.zeros_like(diagonal) if mean is None else mean, share)
    found[:, np.arange(columns), np.arange(columns)] = diagonal + floor
    return found


def _relative_std(covariance: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Scale of each group at which a step costs every group the same: [groups], of geometric mean 1."""
    diagonal = np.einsum("gii->gi", covariance) if covariance.ndim == 3 else covariance
    logarithm = np.log(energy) / 2 - np.log(diagonal).mean(1) / 2
    return np.exp(logarithm - logarithm.mean())


def _exponents(unit: np.ndarray, columns: int) -> np.ndarray:
    """Exponents of the rows' scales, int16 [outputs]: multiples of a power of two, as coarse as pays.

    A step that is off by a factor e^x raises the cost of a weight, distortion plus slope times rate, from its minimum
    by 2 x^2 times the distortion there, slope / (2 ln 2): by x^2 / ln 2 bits. Rounding to multiples of m eighths of an
    octave leaves x uniform in +-m ln 2 / 16 and saves log2 m bits a row: m^2 = 384 / (ln 2^2 columns) is best.
    """
    best = np.sqrt(384 / (np.log(2) ** 2 * max(columns, 1)))
    multiple = 2 ** int(np.clip(np.round(np.log2(best)), 0, np.log2(COARSEST_SCALE)))
    return np.clip(np.round(STEPS * np.log2(unit) / multiple) * multiple, -REACH, REACH).astype(np.int16)


def quantise(
    layer: PreparedLayer,
    slope: float,
    sensitivity_scale: float,
    options: Options,
    most: int = 2**MOST_INDEX_BITS,
) -> Quantised:
    """The layer at `slope` nats a bit, with its predicted loss multiplied by `sensitivity_scale`.

    A layer whose weights differ keeps two shared values at least, at a lower slope if need be: to be erased costs far
    more than a loss that is quadratic in the change can tell. With indices of fixed width there are `most` values at
    most.
    """
    importance = layer.importance * sensitivity_scale
    inverse_std = layer.inverse_std(options.error_feedback)
    erasing = _erasing_slope(layer, importance, inverse_std)
    slope = min(slope, erasing)
    keep = options.keep_zeros and not layer.weights.all()
    starts = [(*_levels(layer, slope, importance, inverse_std, options.format, keep, most), None)]
    if options.format == "entropy" and layer.weights.size <= GRID_WEIGHTS:
        starts += [_grid(layer.weights, share * _grid_step(slope, importance, inverse_std)) for share in GRID_STEPS]
    found = [
        assigned(layer, slope, importance, inverse_std, levels, lengths, step, options)
        for levels, lengths, step in starts
        if step is None or len(levels) > 1
    ]
    best = min(
        [way for way in found if len(way.levels) > 1] or found[:1], key=lambda way: way.loss + slope * way.code_bits
    )
    if options.format == "entropy" and len(best.levels) == 1 and erasing < np.inf:
        return quantise(layer, slope / 2, sensitivity_scale, options)
    if options.format == "coreml" and len(best.levels) not in palette_sizes("coreml", len(best.levels)):
        # So many fell away that the others take a width that there is not.
        return quantise(layer, slope, sensitivity_scale, options, len(best.levels))
    return finished(layer, slope, importance, best, options)


def assigned(
    layer: PreparedLayer,
    slope: float,
    importance: np.ndarray,
    inverse_std: np.ndarray,
    levels: np.ndarray,
    lengths: np.ndarray,
    step: np.float32 | None,
    options: Options,
) -> Assigned:
    """Steps 3 to 6, from these levels and code lengths; those of a grid stay multiples of its step, which changes."""
    keep = options.keep_zeros and not layer.weights.all()
    # In squared output error a bit; indices of fixed width all cost the same.
    row_slope = slope / np.maximum(importance, TINY)
    row_slope = row_slope if options.format == "entropy" else np.zeros_like(row_slope)
    factors = layer.inputs.factor if options.error_feedback else np.empty((*inverse_std.shape, 0))
    for _ in range(PASSES if options.format == "entropy" else 1):
        zero = _zero(levels, keep)
        parts = [
            feedback.assign_with_feedback(weights, factor, levels, lengths, slopes, inverse, zero)
            for weights, factor, slopes, inverse in zip(layer.weights, factors, row_slope, inverse_std, strict=True)
        ]
        indices = np.stack([part[0] for part in parts])
        levels, indices, counts = _used(levels, indices)
        lengths = np.log2(indices.size / counts)
    losses, variance = [part[1] for part in parts], None
    if not layer.inputs.is_diagonal and len(levels) > 1:
        whole = layer.covariance
        if options.least_squares:
            levels, step = _least_squares(layer, whole, indices, levels, step, importance, _zero(levels, keep))
        if options.assignment_descent:
            zero = _zero(levels, keep)
            parts = [
                feedback.descend(weights, covariance, levels.astype(np.float64), lengths, slopes, own, zero)
                for weights, covariance, slopes, own in zip(layer.weights, whole, row_slope, indices, strict=True)
            ]
            losses = [part[0] for part in parts]
            variance = layer.variance + np.stack([part[1] for part in parts])
            levels, indices, counts = _used(levels, indices)
    loss = float(sum((rows * weight).sum() for rows, weight in zip(losses, importance, strict=True)))
    if options.variance_matching:
        levels, step = _variance_matched(layer, indices, levels, step, variance)
    return Assigned(levels, step, indices, counts, loss)


def _grid_step(slope: float, importance: np.ndarray, inverse_std: np.ndarray) -> float:
    """Step of a uniform quantizer of high rate, whose distortion is a twelfth of the step's square, at this slope."""
    return float(np.sqrt(6 * slope / np.log(2) / _cost(importance, inverse_std)))


def high_rate_slope(step: float, importance: np.ndarray, inverse_std: np.ndarray) -> float:
    """Slope at which a uniform quantizer of high rate has this step."""
    return step**2 * np.log(2) / 6 * _cost(importance, inverse_std)


def _grid(weights: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Multiples of a step over the range of the weights, their code lengths, and the step as a file holds it.

    No levels where these would be too many.
    """
    held = _short(step)
    low, high = np.rint(weights.min() / held), np.rint(weights.max() / held)
    if max(-low, high, high - low) >= GRID_VALUES:
        return np.zeros(0, np.float32), np.zeros(0), held
    low, high = int(low), int(high)
    counts = np.bincount((np.rint(weights / held) - low).astype(np.int64).ravel(), minlength=high - low + 1) + 0.5
    return multiples(np.arange(low, high + 1), held), np.log2(counts.sum() / counts), held


def _short(step: float) -> np.float32:
    """The nearest float32 whose lower half is 0."""
    bits = np.float32(max(step, TINY)).view(np.uint32)
    return (bits + np.uint32(1 << 15) & np.uint32(0xFFFF0000)).view(np.float32)


def multiples(places: np.ndarray, step: np.float32) -> np.ndarray:
    """Shared values of a grid, float32: integers times its step."""
    return (places * np.float64(step)).astype(np.float32)


def _rescaled(levels: np.ndarray, step: np.float32, factor: float) -> tuple[np.ndarray, np.float32]:
    """The levels of a grid and its step, multiplied by a factor."""
    longer = _short(float(step) * factor)
    return multiples(np.rint(levels.astype(np.float64) / step), longer), longer


def _erasing_slope(layer: PreparedLayer, importance: np.ndarray, inverse_std: np.ndarray) -> float:
    """Slope at which the layer as one value would cost about as little, in nats a bit; infinite if that loses nothing.

    It is the slope at rate 0 of the distortion of a Gaussian source, D = s^2 4^-R, with s^2 the loss for each weight.
    """
    if not np.ptp(layer.weights):
        return np.inf
    lost = (layer.weights - layer.weights.mean()) ** 2 * importance[:, None, :] / inverse_std[:, :, None] ** 2
    return 2 * np.log(2) * float(lost.mean()) or np.inf


def _zero(levels: np.ndarray, keep: bool) -> int:
    """Place of the level that weights of exactly 0 keep, or -1 if they need not."""
    return int(np.searchsorted(levels, 0)) if keep else -1


def _used(levels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels that some weight takes, the indices into these, and how many weights take each."""
    counts = np.bincount(indices.ravel(), minlength=len(levels))
    used = counts > 0
    return levels[used], (np.cumsum(used) - 1).astype(np.uint16)[indices], counts[used]


def _levels(
    layer: PreparedLayer,
    slope: float,
    importance: np.ndarray,
    inverse_std: np.ndarray,
    format: str,
    keep: bool,
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Shared values and their code lengths before any feedback; 0 is among them if weights of 0 `keep` it."""
    cost = _cost(importance, inverse_std)
    if format == "entropy":
        if keep:
            return _levels_with_zero(layer.weights, slope / cost)
        levels, lengths = ecsq.codebook_of(layer.binned, slope / cost, LEVEL_BITS)
        return _rounded(levels), lengths
    found = layer.sweep_with_zero if keep else layer.sweep
    best = min(
        palette_sizes(format, min(len(found.inertia), most)),
        key=lambda k: cost * found.inertia[k - 1] + slope * _table_bits(format, k, layer.weights.size),
    )
    return _rounded(found.codebook(best)), np.zeros(best)


def _table_bits(format: str, k: int, weights: int) -> float:
    """Bits of indices of fixed width, and of their codebook."""
    return coreml_bits(k, weights) if format == "coreml" else index_bits(k) * weights + LEVEL_BITS / 2 * k


def _cost(importance: np.ndarray, inverse_std: np.ndarray) -> float:
    """Loss of a unit of squared weight error, on average over the layer."""
    return max(float(np.mean(importance[:, None, :] / inverse_std[:, :, None] ** 2)), TINY)


def _levels_with_zero(weights: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Shared values and code lengths, by `ecsq.codebook` of all weights that are not 0, and 0 for the others."""
    others = weights[weights != 0]
    kept = 1 - others.size / weights.size
    if not others.size:
        return np.zeros(1, np.float32), np.zeros(1)
    levels, lengths = ecsq.codebook(others, slope, LEVEL_BITS)
    levels, shares = _rounded(levels), 2.0**-lengths * (1 - kept)
    place = int(np.searchsorted(levels, 0))
    if place == len(levels) or levels[place]:
        levels, shares = np.insert(levels, place, 0), np.insert(shares, place, 0)
    shares[place] += kept
    return levels, -np.log2(shares)


def _rounded(levels: np.ndarray) -> np.ndarray:
    """Levels as float16 holds them, unless that moves one far towards its neighbour or out of range."""
    with np.errstate(over="ignore"):
        rounded = levels.astype(np.float16).astype(np.float32)
    gap, largest = np.diff(levels).min(initial=np.inf), np.abs(levels).max()
    return rounded if np.abs(rounded - levels).max() < min(gap / ROUNDED_GAP, largest / ROUNDED_RANGE) else levels


def _least_squares(
    layer: PreparedLayer,
    covariance: np.ndarray,
    indices: np.ndarray,
    levels: np.ndarray,
    step: np.float32 | None,
    importance: np.ndarray,
    zero: int,
) -> tuple[np.ndarray, np.float32 | None]:
    """Levels of least output error for these indices, if they stay in order; (van Baalen et al. 2024, "GPTVQ", 3.3).

    The level `zero`, which is 0, stays, unless that is below 0. Of a grid only the step is solved for.
    """
    groups, columns, rows = layer.weights.shape
    every = max(1, int(np.ceil(columns**2 * rows * groups / NORMAL_PRODUCTS)))
    matrix, vector = np.zeros((len(levels), len(levels))), np.zeros(len(levels))
    for group in range(0, groups, every if rows == 1 else 1):
        chosen = slice(None, None, 1 if rows == 1 else every)
        part = feedback.codebook_normal(
            np.ascontiguousarray(indices[group][:, chosen]),
            np.ascontiguousarray(layer.weights[group][:, chosen]),
            covariance[group],
            np.ascontiguousarray(importance[group][chosen]),
            len(levels),
        )
        matrix += part[0]
        vector += part[1]
    if not matrix.any():
        return levels, step
    if step is not None:
        factor = float(vector @ levels) / float(levels @ matrix @ levels)
        return _rescaled(levels, step, factor) if 0.5 < factor < 2 else (levels, step)
    pull = PULL * np.trace(matrix) / len(levels)
    matrix, vector = matrix + pull * np.eye(len(levels)), vector + pull * levels
    if zero >= 0:
        matrix[zero], matrix[:, zero], vector[zero] = 0, 0, 0
        matrix[zero, zero] = 1
    solved = np.linalg.solve(matrix, vector)
    ordered = (np.diff(solved) > 0).all()
    return (_rounded(solved.astype(np.float32)) if ordered else levels), None


def _variance_matched(
    layer: PreparedLayer,
    indices: np.ndarray,
    levels: np.ndarray,
    step: np.float32 | None,
    variance: np.ndarray | None,
) -> tuple[np.ndarray, np.float32 | None]:
    """Levels times the one number that gives the layer's outputs the variance that they had.

    A shared value is about the mean of what it stands for, so that outputs vary less by what is lost, layer after
    layer. Variances of outputs count by their importance; `variance` is what they have now, [groups, rows], if that is
    known. The mean is corrected elsewhere.
    """
    before = float((layer.importance * layer.variance).sum())
    after = 0.0 if variance is None else float((layer.importance * variance).sum())
    # Where little is left, what was added up along the way is mostly rounding.
    if after <= LEAST_VARIANCE * before:
        after = float((layer.importance * _variance(layer.covariance, levels[indices])).sum())
    if not before or not after:
        return levels, step
    factor = np.sqrt(before / after)
    return (_rounded((levels * factor).astype(np.float32)), None) if step is None else _rescaled(levels, step, factor)


def _variance(covariance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Variance of each output, w^T C w: float64 [groups, rows] of `weights` [groups, columns, rows]."""
    weights = weights.astype(covariance.dtype)
    if covariance.ndim == 2:
        return np.einsum("gcr,gc->gr", weights**2, covariance, dtype=np.float64)
    return np.einsum("gcr,gcr->gr", covariance @ weights, weights, dtype=np.float64)


def finished(
    layer: PreparedLayer, slope: float, importance: np.ndarray, found: Assigned, options: Options
) -> Quantised:
    """Step 8, and the bits: the layer with these shared values, its shifts or bias rounded as `slope` allows."""
    levels, indices = found.levels, found.indices
    change = levels[indices] - layer.weights
    correction = np.zeros(layer.layout.outputs(layer.shape))
    if options.bias_correction and layer.mean is not None:
        correction = -np.einsum("gcr,gc->gr", change, layer.mean).ravel()
    scale = 1.0 if layer.exponents is None else row_scale(layer.exponents)
    norm = None
    if layer.norm is not None:
        shift = layer.shift + correction
        unit = _shift_unit(shift, slope, importance)
        steps = np.round(shift / unit).astype(np.int32)
        norm = FoldedNorm(f"{layer.name}.weight", steps, float(unit), layer.norm.eps, layer.norm.affine)
    bits = _bits(options.format, found, layer.exponents, None if norm is None else norm.steps)
    step = None if found.step is None else float(found.step)
    shared = Shared(levels, layer.layout.from_matrix(indices, layer.shape), layer.exponents, layer.layout, step)
    of_outputs = importance if layer.exponents is None else importance / scale.reshape(importance.shape) ** 2.0
    bias_unit = 2.0 ** np.floor(np.log2(_shift_step(slope, of_outputs)))
    # The formats of the packed file itself; the others' bits are those of other runtimes.
    coded = CODINGS[options.format] == options.format
    return Quantised(shared, correction * scale, norm, found.loss, bits, float(bias_unit), coded)


def _bits(format: str, found: Assigned, exponents: np.ndarray | None, steps: np.ndarray | None) -> float:
    """Analytic: ideal code lengths or index widths, and all tables; of other runtimes what these take."""
    k, weights = len(found.levels), found.indices.size
    scales, shifts = (0 if values is None else len(values) for values in (exponents, steps))
    if format == "coreml":
        return float(coreml_bits(k, weights, scales, shifts))
    if format in INTEGER_WIDTHS:
        width = integer_width(format, np.abs(found.levels).max() / found.step)
        return float(integer_bits(width, weights, scales, shifts))
    bits = found.code_bits if format == "entropy" else _table_bits(format, k, weights)
    for values in (exponents, steps):
        bits += 0 if values is None else _entropy_bits(values)
    return bits


def _shift_unit(shift: np.ndarray, slope: float, importance: np.ndarray) -> np.float32:
    """Step of the shifts, in row units: as coarse as the slope allows, and such that the largest takes 2^6 to 2^30."""
    largest = np.abs(shift).max() or 1.0
    return np.float32(np.clip(_shift_step(slope, importance), largest / 2**30, largest / LEAST_STEPS))


def _shift_step(slope: float, importance: np.ndarray) -> float:
    """Step of shifts that the slope allows, in the units that `importance` is of."""
    return SHIFT_CELLS * float(np.sqrt(6 * slope / np.log(2) / max(importance.mean(), TINY)))


def _entropy_bits(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(values.size / counts))
