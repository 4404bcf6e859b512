"""Layers as integers with a scale for each output."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.packed.format import pack, read_shared
from wshare.quantize import integers
from wshare.quantize.codebooks import row_scale
from wshare.quantize.integers import quantise, width_at
from wshare.quantize.layer import Options, PreparedLayer, Quantised

from .test_layer import LAYERS, SCALES, Layer, check_sane, output_error

INT8, INT4 = Options(format="int8"), Options(format="int4")
# Slopes at which a bit costs nothing, and at which it costs more than any loss.
CHEAP, DEAR = 1e-20, 1e6
PLAIN = {"error_feedback": False, "least_squares": False, "assignment_descent": False, "variance_matching": False}


def heavy(**settings) -> Layer:
    """A layer of a few large weights and many small ones, which 4 bits change much."""
    layer = Layer(**settings)
    layer.weight **= 3
    return layer


def in_units(made: PreparedLayer, part: Quantised) -> PreparedLayer:
    """The prepared layer in units of the scales that it was given."""
    ratio = np.ones(len(part.shared.exponents)) if made.exponents is None else row_scale(made.exponents)
    ratio = ratio.astype(np.float64) / row_scale(part.shared.exponents)
    rows = ratio.reshape(made.importance.shape)
    shift = None if made.shift is None else made.shift * ratio
    return replace(made, weights=made.weights * rows[:, None], importance=made.importance / rows**2, shift=shift)


def check(layer: Layer, part: Quantised, most: int) -> None:
    made = in_units(layer.prepared(), part)
    check_sane(made, part)
    places = part.shared.codebook.astype(np.float64) / part.shared.step
    np.testing.assert_array_equal(places, np.rint(places))
    assert np.abs(places).max() <= most
    # Shared values of all layers in one packed file, coded in whichever way.
    content, _ = pack({"w": layer.weight}, {"w": part.shared}, {}, {}, {}, "entropy")
    assert read_shared(content)[0]["w"].weight().tobytes() == part.shared.weight().tobytes()


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_integers_times_a_scale_of_their_output(name):
    layer = Layer(**LAYERS[name])
    made = layer.prepared()
    for options, slope, most, tolerance in ((INT8, DEAR, 127, 0.01), (INT4, CHEAP, 127, 0.01), (INT4, DEAR, 7, 0.2)):
        part = quantise(made, slope, 1.0, options)
        check(layer, part, most)
        wanted = layer.wanted()
        largest = np.maximum(np.abs(wanted).max(1), integers.LEAST_SCALE * np.abs(wanted).max())
        if layer.moments.energy.all():
            assert (np.abs(part.shared.weight() - wanted).max(1) / largest).max() < tolerance


@pytest.mark.parametrize("name", ["plain", "negative scales", "depthwise with norm", "groups"])
@pytest.mark.parametrize("options", [INT8, INT4], ids=["int8", "int4"])
def test_the_predicted_loss_is_the_error_of_outputs(name, options):
    made = Layer(**LAYERS[name]).prepared()
    part = quantise(made, DEAR, 1.0, replace(options, least_squares=False, variance_matching=False))
    np.testing.assert_allclose(part.loss, output_error(in_units(made, part), part), rtol=1e-6)


@pytest.mark.parametrize("name", ["plain", "batch norm", "depthwise", "groups"])
def test_each_scale_is_that_of_least_error_among_all_down_to_a_quarter(name):
    """Of rounding to the nearest, each weight's error counted by the variance of its input."""
    layer = Layer(**LAYERS[name])
    # Some inputs are far louder than others.
    loud = np.geomspace(0.1, 10, layer.weight.shape[1]).astype(np.float32)
    moments = layer.moments
    layer.moments = replace(moments, mean=moments.mean * loud, second=moments.second * loud[:, None] * loud)
    made, wanted = layer.prepared(), layer.wanted()
    part = quantise(made, DEAR, 1.0, replace(INT4, **PLAIN))
    diagonal = np.einsum("gii->gi", made.covariance).repeat(len(wanted) // layer.groups, axis=0)
    clipped = 0
    for row, variance, exponent in zip(wanted, diagonal, part.shared.exponents, strict=True):

        def error(exponent: int, row=row, variance=variance) -> float:
            scale = 2 ** (exponent / 8)
            return float((variance * (row - scale * np.clip(np.rint(row / scale), -7, 7)) ** 2).sum())

        top = int(np.ceil(8 * np.log2(np.abs(row).max() / 7)))
        assert top - 17 < exponent <= top
        assert error(exponent) <= (1 + 1e-4) * min(error(other) for other in range(top - 16, top + 1))
        clipped += exponent < top
    # Gaussian weights gain from clipping.
    assert clipped > len(wanted) / 4


def test_the_slope_chooses_the_width_and_nothing_else():
    made = Layer(outputs=24, columns=30, scale=SCALES.repeat(2)).prepared()
    fine, coarse = (quantise(made, slope, 1.0, INT4) for slope in (CHEAP, DEAR))
    # 720 weights, 24 scales and 24 shifts.
    assert [fine.bits, coarse.bits] == [720 * width + 32 * 48 for width in (8, 4)]
    border = (coarse.loss - fine.loss) / (4 * 720)
    for factor, expected in ((0.5, fine), (0.99, fine), (1.01, coarse), (100, coarse)):
        part = quantise(made, factor * border, 1.0, INT4)
        assert part.shared.weight().tobytes() == expected.shared.weight().tobytes()
        np.testing.assert_array_equal(part.norm.steps, expected.norm.steps)
        found, wanted = ((one.bits, one.loss, one.bias_unit, one.norm.unit) for one in (part, expected))
        assert found == wanted
    # A layer of twice the sensitivity keeps 8 bits at twice the slope.
    assert quantise(made, 1.9 * border, 2.0, INT4).bits == fine.bits
    assert quantise(made, 2.1 * border, 2.0, INT4).loss == 2 * coarse.loss
    eight = [quantise(made, slope, 1.0, INT8) for slope in (CHEAP, DEAR)]
    assert all(part.shared.weight().tobytes() == fine.shared.weight().tobytes() for part in eight)


def test_a_width_is_made_once(monkeypatch):
    made, calls = Layer().prepared(), []
    assigned = integers.assigned
    monkeypatch.setattr(integers, "assigned", lambda *args: calls.append(1) or assigned(*args))
    for slope in (CHEAP, 1e-6, DEAR):
        quantise(made, slope, 1.0, INT4)
        width_at(made, slope, 3.0, INT4)
    assert len(calls) == 2
    quantise(made, DEAR, 1.0, replace(INT4, error_feedback=False))
    assert len(calls) == 4


@pytest.mark.parametrize("switch", ["error_feedback", "least_squares", "assignment_descent"])
def test_what_other_formats_do_pays_for_integers_too(switch):
    better = []
    for seed in range(3):
        made = heavy(outputs=32, columns=45, seed=seed).prepared()
        base = replace(INT4, variance_matching=False)
        on, off = (quantise(made, DEAR, 1.0, replace(base, **{switch: value})) for value in (True, False))
        better.append(output_error(in_units(made, on), on) / output_error(in_units(made, off), off))
    assert np.mean(better) < 1


def test_outputs_vary_as_they_did():
    made = heavy(scale=SCALES).prepared()
    ratios = []
    for switch in (True, False):
        part = quantise(made, DEAR, 1.0, replace(INT4, **PLAIN | {"variance_matching": switch}))
        units = in_units(made, part)
        weights = part.shared.codebook.astype(np.float64)[part.shared.indices]
        found, wanted = (
            np.einsum("rc,cd,rd,r->", rows, made.covariance[0], rows, units.importance[0])
            for rows in (weights, units.weights[0].T)
        )
        ratios.append(found / wanted)
    assert abs(ratios[0] - 1) < 5e-3 < abs(ratios[1] - 1)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("options", [INT8, INT4], ids=["int8", "int4"])
def test_zeros_are_kept(options, groups):
    layer = Layer(groups=groups, scale=np.linspace(0.5, 2, 12))
    zeros = np.random.default_rng(1).random(layer.weight.shape) < 0.6
    layer.weight[zeros] = 0
    part = quantise(layer.prepared(), DEAR, 1.0, replace(options, keep_zeros=True)).shared
    assert not part.weight()[zeros].any()
    assert part.weight().any()


@pytest.mark.parametrize("least", [1e-4, 1e-12, 1e-42, 0.0])
@pytest.mark.parametrize("options", [INT8, INT4], ids=["int8", "int4"])
def test_a_channel_that_training_gave_up_keeps_its_shift(least, options):
    layer = Layer(scale=[least, *SCALES[1:]])
    shift = np.linspace(-1, 1, 12).astype(np.float32)
    layer.norm = replace(layer.norm, shift=shift)
    part = quantise(layer.prepared(), DEAR, 1.0, options)
    # Means of what the weights lose are in it, too.
    np.testing.assert_allclose(
        part.norm.norm(part.shared.exponents).shift, shift, atol=0.5 if options is INT4 else 0.05
    )
    check(layer, part, 127)


@pytest.mark.parametrize("value", [0.0, 0.25, -1.7])
def test_equal_weights_come_back(value):
    layer = Layer()
    layer.weight[:] = value
    part = quantise(layer.prepared(), DEAR, 1.0, INT8)
    np.testing.assert_allclose(part.shared.weight(), value, rtol=0.01)


@pytest.mark.slow
@given(
    st.sampled_from([(1, 1, 1), (5, 1, 1), (1, 7, 1), (6, 9, 6), (6, 9, 3), (4, 25, 2), (10, 12, 1)]),
    st.sampled_from([None, "norm", "bias"]),
    st.tuples(*[st.floats(-6, 6)] * 3),
    st.floats(0, 3),
    st.integers(0, 1),
    st.sampled_from(["int8", "int4"]),
    st.integers(0, 99),
)
def test_no_layer_makes_a_nan_or_an_infinity(shape, kind, powers, uneven, dead, form, seed):
    size, loudness, fisher = (10.0**power for power in powers)
    outputs, columns, groups = shape
    scale = 10 ** np.random.default_rng(seed).uniform(-uneven, uneven, outputs) * (-1) ** seed
    norm = scale if kind == "norm" else None
    layer = Layer(outputs, columns, groups, norm, kind == "bias", seed, size, loudness, dead * (groups > 1), fisher)
    check(layer, quantise(layer.prepared(), 1e-3 * fisher * size**2, 1.0, Options(format=form)), 127)
