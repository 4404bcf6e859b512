import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.packed.format import BatchNorm, FoldedNorm, write_packed
from wshare.quantize import layer as quantization
from wshare.quantize.codebooks import Layout, row_scale
from wshare.quantize.cost import index_bits
from wshare.quantize.covariance import Covariance
from wshare.quantize.layer import Options, PreparedLayer, Quantised, prepare, quantise
from wshare.quantize.statistics import InputStatistics

PLAIN = Options("entropy", False, False, False, False, False)
FIXED = Options(format="fixed")


@pytest.fixture(scope="module", autouse=True)
def codebooks_alone():
    """Most tests are of codebooks; those of grids allow them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "GRID_WEIGHTS", 0)
        yield


class Layer:
    """A layer with inputs that resemble their neighbours, as float64 [groups, columns, samples]."""

    def __init__(
        self,
        outputs: int = 12,
        columns: int = 18,
        groups: int = 1,
        scale: list[float] | np.ndarray | None = None,
        bias: bool = False,
        seed: int = 0,
        size: float = 1.0,
        loudness: float = 1.0,
        dead: int = 0,
        fisher: float = 1.0,
    ):
        rng = np.random.default_rng(seed)
        samples = 400
        noise = rng.normal(size=(groups, columns + 4, samples))
        self.inputs = loudness * (0.7 + sum(noise[:, i : i + columns] for i in range(5)) / 2)
        self.inputs[:dead] = 0
        self.groups = groups
        self.weight = (size * rng.normal(size=(outputs, columns))).astype(np.float32)
        second = self.inputs @ self.inputs.transpose(0, 2, 1) / samples
        self.moments = InputStatistics(
            self.inputs.mean(2).astype(np.float32), second.astype(np.float32), images=100, positions=16
        )
        self.norm = None
        if scale is not None:
            scale = np.asarray(scale, dtype=np.float32)
            shift = size * loudness * np.maximum(np.abs(scale), 1e-3) * rng.normal(size=outputs)
            self.norm = BatchNorm(scale, shift.astype(np.float32), 1e-5, True)
        self.fisher, self.bias = fisher, bias

    def prepared(self) -> PreparedLayer:
        layout = Layout(0, self.groups)
        return prepare("l", self.weight, layout, self.fisher, self.moments, self.norm, self.bias)

    def outputs(self, weight: np.ndarray) -> np.ndarray:
        """Without any bias or shift: [outputs, samples]."""
        grouped = weight.astype(np.float64).reshape(self.groups, -1, weight.shape[1])
        return (grouped @ self.inputs).reshape(len(weight), -1)

    def wanted(self) -> np.ndarray:
        """The weights that a folded norm leaves, float64."""
        return self.weight * (1.0 if self.norm is None else self.norm.scale.astype(np.float64)[:, None])


SCALES = np.random.default_rng(9).uniform(0.3, 3, 12)
LAYERS = {
    "plain": {},
    "linear with bias": {"bias": True},
    "batch norm": {"scale": SCALES},
    "negative scales": {"scale": SCALES * np.tile([1, -1], 6)},
    "zero scales": {"scale": SCALES * np.tile([1, 0, -1], 4)},
    "scales of many sizes": {"scale": 10.0 ** np.linspace(-3, 3, 12)},
    "depthwise": {"columns": 9, "groups": 12},
    "depthwise with norm": {"columns": 9, "groups": 12, "scale": SCALES},
    "depthwise with dead channels": {"columns": 9, "groups": 12, "scale": SCALES, "dead": 3},
    "groups": {"groups": 3, "bias": True},
    "one weight": {"outputs": 1, "columns": 1},
    "one weight with norm": {"outputs": 1, "columns": 1, "scale": [-2.0]},
    "one column": {"columns": 1},
}


def quantised(layer: Layer, slope: float = 1e-5, options: Options = Options()) -> Quantised:  # noqa: B008
    return quantise(layer.prepared(), slope, 1.0, options)


def output_error(made: PreparedLayer, part: Quantised) -> float:
    """Sum over outputs of importance times dw^T C dw, of the weights in units of their rows."""
    change = part.shared.codebook.astype(np.float64)[part.shared.indices]
    groups, columns, rows = made.weights.shape
    change = change.reshape(groups, rows, columns) - made.weights.transpose(0, 2, 1)
    covariance = made.covariance
    if covariance.ndim == 2:
        covariance = np.stack([np.diag(group) for group in covariance])
    return float((made.importance * np.einsum("grc,gcd,grd->gr", change, covariance, change)).sum())


def check_sane(made: PreparedLayer, part: Quantised) -> None:
    shared = part.shared
    assert np.isfinite(shared.weight()).all()
    assert np.isfinite(part.correction).all()
    assert np.isfinite([part.loss, part.bits]).all()
    assert part.loss >= 0
    assert part.bits > 0
    assert shared.codebook.dtype == np.float32
    assert (np.diff(shared.codebook) >= 0).all()
    assert shared.indices.dtype == np.uint16
    assert shared.indices.max() < len(shared.codebook)
    if shared.exponents is not None:
        assert np.abs(shared.exponents).max() <= 8 * 126
    if part.norm is not None:
        rows = row_scale(shared.exponents).astype(np.float64)
        expected = rows * made.shift + part.correction
        found = part.norm.norm(shared.exponents).shift
        # Off by half a step, and by rounding.
        assert (np.abs(found - expected) <= 0.51 * part.norm.unit * rows + 1e-6 * np.abs(expected)).all()


@pytest.mark.parametrize("options", [Options(), PLAIN, FIXED], ids=["all", "plain", "fixed"])
@pytest.mark.parametrize("name", LAYERS)
def test_at_a_slope_of_next_to_nothing_the_weights_come_back(name, options):
    layer = Layer(**LAYERS[name])
    part = quantised(layer, 1e-10, options)
    check_sane(layer.prepared(), part)
    wanted, found = layer.wanted(), part.shared.weight()
    assert found.shape == layer.weight.shape
    # At most eight bits an index where their width is fixed. Scales of rows are rounded to half octaves.
    tolerance = 0.03 if options is FIXED else 4e-3
    alive = np.abs(wanted).max(1) > 0
    if layer.norm is not None:
        # Rows that training all but gave up are only small: their scale is rounded up.
        alive &= np.abs(layer.norm.scale) >= 2.0**-12 * np.abs(layer.norm.scale).max()
    error = np.abs(found - wanted).max(1)[alive] / np.sqrt((wanted[alive] ** 2).mean(1))
    if layer.moments.energy.all():
        assert error.max() < tolerance
    assert np.sqrt((error**2).mean()) < tolerance
    if layer.norm is not None:
        made = part.norm.norm(part.shared.exponents)
        np.testing.assert_allclose(made.shift, layer.norm.shift, rtol=0.02, atol=0.02 * np.abs(wanted).max())
        np.testing.assert_array_equal(made.scale, 1)


def test_equal_weights_are_one_shared_value():
    for value in (0.0, 0.25, -1.7):
        layer = Layer()
        layer.weight[:] = value
        part = quantised(layer)
        np.testing.assert_allclose(part.shared.weight(), value, rtol=1e-3)
        assert len(part.shared.codebook) == 1


@pytest.mark.parametrize("name", ["plain", "batch norm", "depthwise with norm", "groups"])
@pytest.mark.parametrize("form", ["entropy", "fixed"])
def test_bits_fall_and_the_loss_grows_with_the_slope(name, form):
    layer = Layer(**({"outputs": 24, "columns": 30} | {"scale": None} | LAYERS[name])) if name == "plain" else None
    layer = layer or Layer(**LAYERS[name])
    parts = [quantised(layer, slope, Options(format=form)) for slope in 10.0 ** np.arange(-8, 1)]
    # With two values it has come to the least, which varies a little.
    finer = [part for part in parts if len(part.shared.codebook) > 2]
    assert len(finer) >= 4
    bits, losses = [part.bits for part in finer], [part.loss for part in finer]
    assert bits == sorted(bits, reverse=True)
    assert losses == sorted(losses)
    assert bits[0] > 2 * parts[-1].bits
    assert parts[-1].loss > 100 * losses[0]


@pytest.mark.parametrize("name", ["batch norm", "depthwise with norm", "groups"])
def test_no_slope_erases_a_layer(name):
    for slope in (1e-2, 1.0, 1e6):
        part = quantised(Layer(**LAYERS[name]), slope)
        assert len(part.shared.codebook) == 2
        assert part.shared.weight().any()


def test_no_slope_is_too_high_for_equal_weights():
    """Their mean differs from them by rounding."""
    made = Layer().prepared()
    made = replace(made, weights=np.full_like(made.weights, 0.3))
    assert made.weights.mean() != 0.3
    for slope in (1e-6, 1.0, 1e6):
        shared = quantise(made, slope, 1.0, Options()).shared
        assert len(shared.codebook) == 1
        np.testing.assert_allclose(shared.weight(), 0.3, rtol=1e-3)


def test_a_layer_without_any_importance_may_become_one_value():
    made = Layer().prepared()
    made = replace(made, importance=np.zeros_like(made.importance))
    assert len(quantise(made, 1.0, 1.0, Options()).shared.codebook) == 1


def test_the_slope_is_what_a_bit_costs_at_high_rate():
    """Between neighbouring slopes, the loss grows by about the slope for each bit that is saved."""
    layer = Layer(outputs=200, columns=60)
    for slope in (1e-7, 1e-6):
        near = [quantised(layer, slope * step, PLAIN) for step in (0.8, 1.25)]
        bought = (near[1].loss - near[0].loss) / (near[0].bits - near[1].bits)
        assert 0.6 * slope < bought < 1.6 * slope


def test_a_factor_of_the_loss_is_a_lower_slope():
    made = Layer(scale=SCALES).prepared()
    twice, half = quantise(made, 1e-4, 2.0, Options()), quantise(made, 5e-5, 1.0, Options())
    np.testing.assert_array_equal(twice.shared.weight(), half.shared.weight())
    np.testing.assert_allclose(twice.loss, 2 * half.loss)
    assert twice.bits == half.bits


@pytest.mark.parametrize("name", ["plain", "linear with bias", "negative scales", "depthwise with norm", "groups"])
@pytest.mark.parametrize("form", ["entropy", "fixed"])
def test_the_predicted_loss_is_the_error_of_outputs_after_feedback(name, form):
    made = Layer(**LAYERS[name]).prepared()
    part = quantise(made, 1e-4, 1.0, Options(format=form, least_squares=False, variance_matching=False))
    np.testing.assert_allclose(part.loss, output_error(made, part), rtol=1e-6)


@pytest.mark.parametrize("name", ["plain", "batch norm", "depthwise", "groups"])
def test_without_feedback_the_predicted_loss_takes_inputs_for_independent(name):
    made = Layer(**LAYERS[name]).prepared()
    part = quantise(made, 1e-4, 1.0, PLAIN)
    alone = replace(made, inputs=Covariance(np.einsum("gii->gi", made.covariance).copy()))
    np.testing.assert_allclose(part.loss, output_error(alone, part), rtol=1e-6)


@pytest.mark.slow
def test_feedback_makes_less_loss_for_its_bits():
    better = []
    for seed in range(5):
        layer = Layer(outputs=32, columns=45, seed=seed)
        made = layer.prepared()
        fed = quantised(layer, 1e-5, replace(PLAIN, error_feedback=True))
        slopes = np.geomspace(1e-6, 1e-4, 41)
        plain = min((quantised(layer, slope, PLAIN) for slope in slopes), key=lambda part: abs(part.bits - fed.bits))
        assert abs(plain.bits / fed.bits - 1) < 0.03
        better.append(output_error(made, fed) / output_error(made, plain))
    assert np.mean(better) < 0.7


def test_the_loss_is_that_of_the_definition():
    """1/2 F dw^T C dw / E of each output, with the norm's scale in the weights and F that of weights before it."""
    layer = Layer(scale=SCALES, fisher=3.0)
    made = layer.prepared()
    part = quantise(made, 1e-4, 1.0, Options(least_squares=False, variance_matching=False))
    change = (part.shared.weight() - layer.wanted()) / layer.norm.scale[:, None]
    energy = layer.moments.energy.sum(dtype=np.float64)
    expected = 0.5 * 3.0 / 12 * np.einsum("rc,cd,rd->", change, made.covariance[0], change) / energy
    np.testing.assert_allclose(part.loss, expected, rtol=1e-4)


def test_the_covariance_is_that_of_the_inputs_but_for_damping_and_shrinkage():
    corrected, plain = Layer(bias=True).prepared(), Layer().prepared()
    inputs = Layer().inputs[0]
    for made, expected in ((corrected, np.cov(inputs, bias=True)), (plain, inputs @ inputs.T / inputs.shape[1])):
        found = made.covariance[0]
        usual = np.diag(expected).mean()
        np.testing.assert_allclose(np.diag(found), np.diag(expected) + 0.05 * usual, rtol=1e-3)
        aside = ~np.eye(18, dtype=bool)
        # 18 columns, and 100 images of 16 positions as good as 400 samples.
        np.testing.assert_allclose(found[aside], expected[aside] * (1 - 18 / 418), rtol=1e-3, atol=1e-4)
        assert np.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("name", ["linear with bias", "groups", "negative scales", "depthwise with norm"])
def test_bias_correction_leaves_no_mean_error(name):
    layer = Layer(**LAYERS[name])
    before = layer.outputs(layer.wanted()).mean(1)
    left = {}
    for on in (True, False):
        part = quantised(layer, 3e-3, Options(bias_correction=on))
        after = layer.outputs(part.shared.weight()).mean(1)
        if part.norm is None:
            left[on] = after + part.correction - before
            assert on == bool(part.correction.any())
        else:
            rows = row_scale(part.shared.exponents)
            shift = part.norm.norm(part.shared.exponents).shift.astype(np.float64)
            # In steps of the quantized shift.
            left[on] = (after + shift - before - layer.norm.shift) / (rows * part.norm.unit)
    if layer.norm is None:
        np.testing.assert_allclose(left[True], 0, atol=1e-5)
        assert np.abs(left[False]).mean() > 1e-3
    else:
        assert np.abs(left[True]).max() < 0.51
        assert np.abs(left[False]).mean() > np.abs(left[True]).mean()


def test_nothing_is_corrected_where_there_is_no_bias():
    part = quantised(Layer(), 1e-3)
    assert not part.correction.any()
    assert part.norm is None
    assert part.shared.exponents is None


@pytest.mark.parametrize("slope", [1e-7, 1e-5, 1e-4, 1e-3, 1e-1])
def test_codebooks_for_indices_of_fixed_width_use_all_of_it(slope):
    part = quantised(Layer(outputs=40, columns=30), slope, FIXED)
    k = len(part.shared.codebook)
    assert k in {2**bits for bits in range(1, 9)}
    assert part.bits == math.log2(k) * 1200 + 16 * k


def test_no_more_levels_than_distinct_weights():
    part = quantised(Layer(outputs=3, columns=1), 1e-12, FIXED)
    assert len(part.shared.codebook) == 3
    assert part.bits == index_bits(3) * 3 + 16 * 3


def test_the_bits_of_entropy_coding_are_those_of_the_indices_and_tables():
    part = quantised(Layer(), 1e-4)
    counts = np.unique(part.shared.indices, return_counts=True)[1]
    assert len(counts) == len(part.shared.codebook)
    ideal = -(counts * np.log2(counts / counts.sum())).sum()
    np.testing.assert_allclose(part.bits, ideal + 32 * len(counts))
    with_norm = quantised(Layer(scale=SCALES), 1e-4)
    extra = 0.0
    for values in (with_norm.shared.indices, with_norm.shared.exponents, with_norm.norm.steps):
        counts = np.unique(values, return_counts=True)[1]
        extra -= (counts * np.log2(counts / counts.sum())).sum()
    np.testing.assert_allclose(with_norm.bits, extra + 32 * len(with_norm.shared.codebook))


@pytest.mark.parametrize("name", ["plain", "negative scales", "depthwise", "groups"])
@pytest.mark.parametrize("products", [2e8, 1e3])
def test_least_squares_makes_less_output_error(monkeypatch, name, products):
    """From a few of the outputs, or groups, too."""
    monkeypatch.setattr(quantization, "NORMAL_PRODUCTS", products)
    made = Layer(**LAYERS[name]).prepared()
    on, off = (
        quantise(made, 1e-5, 1.0, Options("entropy", True, True, switch, False, False)) for switch in (True, False)
    )
    np.testing.assert_array_equal(on.shared.indices, off.shared.indices)
    ratio = output_error(made, on) / output_error(made, off)
    assert ratio < (0.97 if products > 1e6 else 1.3)
    if made.norm is None:
        assert on.bits == off.bits


@pytest.mark.parametrize("form", ["entropy", "fixed"])
@pytest.mark.parametrize("name", ["plain", "negative scales", "depthwise", "groups"])
def test_outputs_vary_as_they_did(name, form):
    made = Layer(**LAYERS[name]).prepared()
    on, off = (quantise(made, 1e-3, 1.0, Options(format=form, variance_matching=switch)) for switch in (True, False))
    np.testing.assert_array_equal(on.shared.indices, off.shared.indices)
    groups, columns, rows = made.weights.shape
    covariance = made.covariance if made.covariance.ndim == 3 else np.stack([np.diag(c) for c in made.covariance])

    def variance(codebook: np.ndarray) -> float:
        weights = codebook.astype(np.float64)[on.shared.indices.reshape(groups, rows, columns)]
        return float((made.importance * np.einsum("grc,gcd,grd->gr", weights, covariance, weights)).sum())

    weights = made.weights.transpose(0, 2, 1)
    before = float((made.importance * np.einsum("grc,gcd,grd->gr", weights, covariance, weights)).sum())
    np.testing.assert_allclose(variance(on.shared.codebook), before, rtol=2e-3)
    # Not so without it.
    assert abs(variance(off.shared.codebook) / before - 1) > 5e-3
    assert on.bits == off.bits or made.norm is not None


def test_levels_are_those_of_float16_where_that_costs_nothing():
    part = quantised(Layer(), 1e-4)
    assert len(part.shared.codebook) > 2
    half = part.shared.codebook.astype(np.float16)
    np.testing.assert_array_equal(half.astype(np.float32), part.shared.codebook)
    # Too small or too large for it.
    for size in (1e-9, 1e6):
        part = quantised(Layer(size=size), 1e-5 * size**2)
        assert len(part.shared.codebook) > 3
        assert np.sqrt(((part.shared.weight() - Layer(size=size).weight) ** 2).mean()) < 0.2 * size


def test_diagonal_moments_do_for_very_wide_layers():
    layer = Layer(bias=True)
    made = layer.prepared()
    few = replace(layer.moments, second=layer.moments.energy)
    diagonal = prepare("l", layer.weight, Layout(), 1.0, few, None, True)
    np.testing.assert_allclose(diagonal.covariance, np.einsum("gii->gi", made.covariance))
    for options in (Options(variance_matching=False), Options(format="fixed", variance_matching=False)):
        part = quantise(diagonal, 1e-4, 1.0, options)
        check_sane(diagonal, part)
        np.testing.assert_allclose(part.loss, output_error(diagonal, part), rtol=1e-6)


def test_options_are_those_of_the_configuration():
    given_options = {
        "format": "fixed",
        "max_kl": None,
        "evaluations": 12,
        "probe_images": 64,
        "error_feedback": False,
        "bias_correction": True,
        "least_squares": False,
        "assignment_descent": False,
        "variance_matching": True,
        "fold_batch_norm": True,
        "keep_zeros": True,
    }
    assert Options.of(given_options) == Options("fixed", False, True, False, False, True, True)


@pytest.mark.slow
@given(
    st.sampled_from([(1, 1, 1), (5, 1, 1), (1, 7, 1), (6, 9, 6), (6, 9, 3), (4, 25, 2), (10, 12, 1)]),
    st.sampled_from([None, "norm", "bias"]),
    st.tuples(*[st.floats(-6, 6)] * 3),
    st.floats(-8, 0),
    st.floats(0, 3),
    st.integers(0, 1),
    st.sampled_from(["entropy", "fixed"]),
    st.integers(0, 99),
)
def test_no_layer_makes_a_nan_or_an_infinity(shape, kind, powers, slope, uneven, dead, form, seed):
    """Weights, inputs and Fisher information of any size, also uneven; a slope that suits the layer's loss."""
    size, loudness, fisher = (10.0**power for power in powers)
    outputs, columns, groups = shape
    scale = 10 ** np.random.default_rng(seed).uniform(-uneven, uneven, outputs) * (-1) ** seed
    layer = Layer(
        outputs,
        columns,
        groups,
        scale if kind == "norm" else None,
        kind == "bias",
        seed,
        size,
        loudness,
        dead if groups > 1 else 0,
        fisher,
    )
    made = layer.prepared()
    part = quantise(made, 10**slope * fisher * size**2 / layer.weight.size, 1.0, Options(format=form))
    check_sane(made, part)


@pytest.mark.parametrize("form", ["entropy", "fixed"])
@pytest.mark.parametrize("norm", [True, False])
def test_a_layer_that_nothing_depends_on_costs_next_to_nothing(form, norm):
    """Its Fisher information is 0 if, say, all that it feeds is cut off by a ReLU."""
    layer = Layer(scale=SCALES if norm else None, fisher=0.0)
    part = quantised(layer, 1e-5, Options(format=form))
    assert np.isfinite(part.shared.weight()).all()
    assert np.isfinite([part.loss, part.bits]).all()
    assert part.loss == 0
    if norm:
        assert np.isfinite(part.norm.norm(part.shared.exponents).shift).all()


@pytest.mark.parametrize("form", ["entropy", "fixed"])
def test_a_batch_norm_that_silences_all_channels_leaves_its_shifts(form):
    layer = Layer(scale=np.zeros(12))
    part = quantised(layer, 1e-5, Options(format=form))
    assert not part.shared.weight().any()
    made = part.norm.norm(part.shared.exponents)
    np.testing.assert_allclose(made.shift, layer.norm.shift, atol=0.1 * np.abs(layer.norm.shift).max())


@pytest.mark.parametrize("least", [1e-4, 1e-8, 1e-12, 1e-30, 1e-42])
@pytest.mark.parametrize("form", ["entropy", "fixed"])
def test_a_channel_that_training_gave_up_keeps_its_shift(least, form, tmp_path):
    """Batch norms of pruned channels have scales next to 0, or denormal, but shifts like others."""
    layer = Layer(scale=[least, *SCALES[1:]])
    shift = np.linspace(-1, 1, 12).astype(np.float32)
    layer.norm = replace(layer.norm, shift=shift)
    part = quantised(layer, 1e-7, Options(format=form))
    np.testing.assert_allclose(part.norm.norm(part.shared.exponents).shift, shift, atol=0.12)
    wanted = layer.wanted()
    error = np.abs(part.shared.weight() - wanted)
    assert error.max() < 0.1 * np.abs(wanted).max()
    # And the packed file can hold it.
    state = {"l.weight": layer.weight}
    folded: dict[str, FoldedNorm] = {"bn": part.norm}
    write_packed(tmp_path / "packed", state, {"l.weight": part.shared}, {}, folded, {}, form)


@pytest.mark.parametrize("form", ["entropy", "fixed"])
def test_a_layer_whose_inputs_are_always_zero_keeps_its_shifts(form):
    layer = Layer(scale=SCALES, loudness=0.0)
    layer.norm = replace(layer.norm, shift=np.linspace(-1, 1, 12).astype(np.float32))
    part = quantised(layer, 1e-5, Options(format=form))
    np.testing.assert_allclose(part.norm.norm(part.shared.exponents).shift, layer.norm.shift, atol=0.1)


@pytest.mark.parametrize("options", [Options(), PLAIN, FIXED], ids=["all", "plain", "fixed"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("slope", [1e-7, 1e-4, 1e2])
def test_zeros_are_kept(options, groups, slope):
    layer = Layer(groups=groups, scale=np.linspace(0.5, 2, 12))
    zeros = np.random.default_rng(1).random(layer.weight.shape) < 0.6
    layer.weight[zeros] = 0
    part = quantised(layer, slope, replace(options, keep_zeros=True)).shared
    assert (part.weight()[zeros] == 0).all()
    assert len(part.codebook) > 1
    assert np.count_nonzero(part.codebook == 0) == 1


def test_a_layer_of_zeros_alone_keeps_them():
    layer = Layer()
    layer.weight[:] = 0
    part = quantised(layer, options=Options(keep_zeros=True)).shared
    assert part.codebook.tolist() == [0]


def test_keeping_zeros_changes_nothing_where_there_are_none():
    expected, found = (quantised(Layer(), options=Options(keep_zeros=keep)) for keep in (False, True))
    np.testing.assert_array_equal(found.shared.codebook, expected.shared.codebook)
    np.testing.assert_array_equal(found.shared.indices, expected.shared.indices)


def test_many_zeros_have_a_short_code():
    dense, pruned = (Layer(outputs=40, columns=40) for _ in range(2))
    pruned.weight[np.random.default_rng(1).random(pruned.weight.shape) < 0.9] = 0
    options = Options(keep_zeros=True)
    assert quantised(pruned, 1e-6, options).bits < 0.3 * quantised(dense, 1e-6, options).bits


@pytest.fixture
def grids(monkeypatch):
    """Grids as they are allowed outside of tests."""
    monkeypatch.setattr(quantization, "GRID_WEIGHTS", 1 << 14)


@pytest.mark.parametrize("options", [Options(), PLAIN], ids=["all", "plain"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_small_layer_takes_a_grid_where_that_costs_less(name, options, grids, monkeypatch):
    layer = Layer(**LAYERS[name])
    made, slope = layer.prepared(), 1e-6
    part = quantise(made, slope, 1.0, options)
    check_sane(made, part)
    monkeypatch.setattr(quantization, "GRID_WEIGHTS", 0)
    other = quantise(made, slope, 1.0, options)
    assert other.shared.step is None
    assert part.loss + slope * part.bits <= other.loss + slope * other.bits
    if layer.weight.size > 100:
        assert part.loss + slope * part.bits < 0.9 * (other.loss + slope * other.bits)
        assert np.float32(part.shared.step).view(np.uint32) & 0xFFFF == 0
        places = np.rint(part.shared.codebook / part.shared.step)
        np.testing.assert_array_equal((places * part.shared.step).astype(np.float32), part.shared.codebook)


@pytest.mark.parametrize("name", ["plain", "negative scales", "depthwise", "groups"])
def test_the_step_of_a_grid_is_that_of_least_output_error(name, grids):
    made = Layer(**LAYERS[name]).prepared()
    on, off = (
        quantise(made, 1e-4, 1.0, Options("entropy", True, True, switch, False, False)) for switch in (True, False)
    )
    assert on.shared.step
    np.testing.assert_array_equal(on.shared.indices, off.shared.indices)
    assert output_error(made, on) <= output_error(made, off)
    for factor in (0.97, 1.03):
        shared = replace(on.shared, codebook=on.shared.codebook * np.float32(factor))
        assert output_error(made, on) < output_error(made, replace(on, shared=shared))


def test_a_grid_keeps_zeros(grids):
    layer = Layer(columns=40)
    layer.weight[np.random.default_rng(0).random(layer.weight.shape) < 0.5] = 0
    part = quantised(layer, 1e-6, Options(keep_zeros=True))
    assert part.shared.step
    assert not part.shared.weight()[layer.weight == 0].any()


@pytest.mark.parametrize(("form", "weights"), [("fixed", 1 << 14), ("entropy", 215)])
def test_layers_of_fixed_width_and_large_ones_take_no_grid(form, weights, monkeypatch):
    monkeypatch.setattr(quantization, "GRID_WEIGHTS", weights)
    assert quantised(Layer(), 1e-6, Options(format=form)).shared.step is None


def test_a_grid_of_too_many_values_is_not_tried(grids):
    assert quantised(Layer(), 1e-16).shared.step is None


@pytest.mark.parametrize(("columns", "multiple"), [(4, 8), (9, 8), (25, 4), (100, 2), (400, 1), (2000, 1)])
def test_rows_of_few_weights_have_coarse_scales(columns, multiple):
    scale = 2.0 ** np.random.default_rng(0).uniform(-3, 3, 12)
    exponents = Layer(columns=columns, scale=scale).prepared().exponents
    assert (exponents % multiple == 0).all()
    assert (exponents % (2 * multiple)).any()
    # Off by half of a multiple at most.
    assert np.abs(exponents - 8 * np.log2(scale)).max() <= multiple / 2 + 1e-6


def test_the_unit_of_a_bias_is_what_the_slope_allows():
    made = Layer(bias=True).prepared()
    units = [quantise(made, slope, 1.0, Options()).bias_unit for slope in (1e-6, 4e-6, 1.6e-5)]
    assert units[1:] == [2 * units[0], 4 * units[0]]
    assert np.log2(units[0]) % 1 == 0
    # Half a step, squared, is the loss that a bit saves at least.
    assert 2**-2 * made.importance.mean() * units[0] ** 2 / 12 < 1e-6 * 2 / np.log(2)
