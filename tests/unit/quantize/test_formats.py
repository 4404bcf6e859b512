"""Formats of other runtimes: what they allow a layer, and what that costs."""

import numpy as np
import pytest

from wshare.quantize import error_feedback as feedback
from wshare.quantize import formats
from wshare.quantize.codebooks import Shared
from wshare.quantize.cost import index_bits
from wshare.quantize.layer import Options, quantise

from .test_layer import LAYERS, SCALES, Layer, check_sane

COREML = Options(format="coreml")


def values(part: Shared) -> int:
    return len(part.codebook)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (2, [2]),
        (3, [2, 3]),
        (16, [2, 4, 8, 16]),
        (20, [2, 4, 8, 16]),
        (40, [2, 4, 8, 16, 40]),
        (100, [2, 4, 8, 16, 64]),
        (130, [2, 4, 8, 16, 64, 130]),
        (256, [2, 4, 8, 16, 64, 256]),
    ],
)
def test_palettes_have_only_sizes_whose_indices_core_ml_has(most, sizes):
    assert formats.palette_sizes("coreml", most) == sizes
    assert all(formats.coreml_width(k) == max(1, index_bits(k)) for k in sizes)


def test_fixed_widths_are_one_to_eight_bits():
    assert formats.palette_sizes("fixed", 256) == [2, 4, 8, 16, 32, 64, 128, 256]
    assert formats.palette_sizes("fixed", 20) == [2, 4, 8, 16, 20]


@pytest.mark.parametrize("slope", 10.0 ** np.arange(-10, 1))
@pytest.mark.parametrize("name", LAYERS)
def test_no_index_of_a_layer_for_core_ml_is_padded(name, slope):
    made = Layer(**LAYERS[name]).prepared()
    part = quantise(made, slope, 1.0, COREML)
    check_sane(made, part)
    assert index_bits(values(part.shared)) in (formats.COREML_WIDTHS if values(part.shared) > 1 else [0])


def test_a_codebook_of_which_too_much_falls_away_takes_a_width_that_there_is(monkeypatch):
    """Of 64 values every second is taken here: 32 are left, for whose indices of 5 bits Core ML has 6."""
    assign = feedback.assign_with_feedback

    def rough(*given):
        indices, loss = assign(*given)
        return indices // 2 * 2, loss

    monkeypatch.setattr(feedback, "assign_with_feedback", rough)
    made = Layer(outputs=40, columns=30).prepared()
    fixed, palette = (
        values(quantise(made, 1e-7, 1.0, Options(format=form, assignment_descent=False)).shared)
        for form in ("fixed", "coreml")
    )
    assert (fixed, palette) == (32, 8)


def test_bits_are_those_of_a_core_ml_package():
    slope = 1e-6
    plain = quantise(Layer(outputs=40, columns=30).prepared(), slope, 1.0, COREML)
    width = index_bits(values(plain.shared))
    assert plain.bits == 1200 * width + 32 * 2**width
    normed = quantise(Layer(scale=SCALES).prepared(), slope, 1.0, COREML)
    width = index_bits(values(normed.shared))
    # Scales of rows, and shifts of the batch norm.
    assert normed.bits == 216 * width + 32 * (2**width + 12 + 12)


def test_a_higher_slope_takes_smaller_palettes():
    layer = Layer(outputs=40, columns=30).prepared()
    parts = [quantise(layer, slope, 1.0, COREML) for slope in 10.0 ** np.arange(-9, 0)]
    bits, losses = [part.bits for part in parts], [part.loss for part in parts]
    assert bits == sorted(bits, reverse=True)
    assert len(set(bits)) >= 4
    assert losses == sorted(losses)


@pytest.mark.parametrize("slope", [1e-8, 1e-4, 1e2])
def test_zeros_are_kept_in_palettes(slope):
    layer = Layer(scale=np.linspace(0.5, 2, 12))
    zeros = np.random.default_rng(1).random(layer.weight.shape) < 0.6
    layer.weight[zeros] = 0
    part = quantise(layer.prepared(), slope, 1.0, Options(format="coreml", keep_zeros=True)).shared
    assert not part.weight()[zeros].any()
    assert index_bits(len(part.codebook)) in formats.COREML_WIDTHS
