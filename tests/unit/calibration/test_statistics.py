from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from wshare.artifacts.calibration import read_calibration, write_calibration
from wshare.calibration import statistics as moments
from wshare.calibration.statistics import calibrate, input_statistics
from wshare.data.images import ImageArray
from wshare.errors import FormatError, UserError
from wshare.models.state import fast
from wshare.quantize.statistics import Calibration, InputStatistics, merged


@pytest.fixture(autouse=True)
def _all_positions(monkeypatch):
    monkeypatch.setattr(moments, "POSITIONS", 10**6)


def images(count: int, channels: int = 3, size: tuple[int, int] = (7, 9), seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def both_ways(batch: torch.Tensor) -> torch.Tensor:
    return torch.cat([batch, batch.flip(3)])


def patches(module: nn.Conv2d, batch: torch.Tensor) -> np.ndarray:
    """Inputs of all outputs, float64 [groups, columns, samples], by torch's own unfold of the padded images."""
    if module.padding == "same":
        total = [gap * (kernel - 1) for gap, kernel in zip(module.dilation, module.kernel_size, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        around = (left, total[1] - left, top, total[0] - top)
    elif module.padding == "valid":
        around = (0, 0, 0, 0)
    else:
        around = (module.padding[1],) * 2 + (module.padding[0],) * 2
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(batch.double(), around, mode=mode)
    columns = functional.unfold(padded, module.kernel_size, dilation=module.dilation, stride=module.stride)
    samples = columns.permute(1, 0, 2).reshape(module.groups, columns.shape[1] // module.groups, -1)
    return samples.numpy()


def check(found: InputStatistics, inputs: np.ndarray, count: int) -> None:
    samples = inputs.shape[2]
    np.testing.assert_allclose(found.mean, inputs.mean(2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.second, inputs @ inputs.transpose(0, 2, 1) / samples, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.energy, (inputs**2).mean(2), rtol=1e-4, atol=1e-5)
    assert (found.images, found.positions) == (count, samples // count)
    assert found.mean.dtype == found.second.dtype == np.float32


def measured(module: nn.Module, batch: torch.Tensor, seed: int = 0) -> InputStatistics:
    return input_statistics(fast(nn.Sequential(module).eval()), [batch], ["0"], seed)["0"]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (2, 3), "padding": (0, 2), "stride": (2, 1), "dilation": (2, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": (3, 2), "padding": "same"},
        {"kernel_size": 4, "padding": "same", "dilation": (1, 2)},
        {"kernel_size": 3, "padding": "valid", "stride": 3},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular", "stride": 2},
        # More stride than the kernel behind the padding reaches: the last rows are left out.
        {"kernel_size": 3, "padding": 1, "stride": 4},
        {"kernel_size": 1, "padding": 2, "stride": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize(("channels", "outputs", "groups"), [(3, 4, 1), (4, 6, 2), (4, 4, 4), (3, 6, 3)])
def test_a_convolutions_inputs_are_those_of_unfold(options, channels, outputs, groups):
    module = nn.Conv2d(channels, outputs, groups=groups, **options)
    batch = images(2, channels)
    check(measured(module, batch), patches(module, both_ways(batch)), 4)


@pytest.mark.slow
@given(
    st.integers(1, 5), st.integers(0, 3), st.integers(1, 5), st.integers(1, 2), st.integers(5, 13), st.integers(9, 12)
)
def test_any_geometry_sees_the_right_pixels(kernel, padding, stride, dilation, high, wide):
    module = nn.Conv2d(2, 3, kernel, stride, padding, dilation)
    if (kernel - 1) * dilation + 1 > high + 2 * padding:
        return
    batch = images(1, 2, (high, wide))
    check(measured(module, batch), patches(module, both_ways(batch)), 2)


def test_outputs_follow_from_the_columns_in_the_order_of_the_weight():
    """The mean output is the weight of each output times the mean input, group by group."""
    module = nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2, bias=False)
    batch = images(3, 4)
    found = measured(module, batch)
    weight = module.weight.detach().double().numpy().reshape(2, 3, -1)
    expected = module(both_ways(batch)).detach().double().mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(np.einsum("goc,gc->go", weight, found.mean).ravel(), expected, rtol=1e-4, atol=1e-6)


class Padded(nn.Conv2d):
    """Pads inside its own forward, as timm's layers that imitate TensorFlow do."""

    def forward(self, inputs):
        return super().forward(functional.pad(inputs, (0, 1, 0, 1)))


def test_padding_inside_a_layers_own_forward_is_found_from_the_sizes():
    module, batch = Padded(3, 4, 3, stride=2, bias=False), images(2, size=(8, 10))
    padded = functional.pad(both_ways(batch), (0, 1, 0, 1))
    check(measured(module, batch), patches(nn.Conv2d(3, 4, 3, stride=2), padded), 4)


def test_a_linear_layers_inputs_are_the_rows_of_its_input():
    network = nn.Sequential(nn.Flatten(), nn.Linear(27, 4)).eval()
    batch = images(5, size=(3, 3))
    found = input_statistics(network, [batch], ["1"], 0)["1"]
    check(found, both_ways(batch).reshape(10, 27).double().numpy().T[None], 10)


def test_a_linear_layer_on_many_positions_takes_all_of_them():
    """As in a vision transformer: [batch, positions, features]."""
    network = nn.Sequential(nn.Flatten(2), nn.Linear(12, 5)).eval()
    batch = images(3, size=(3, 4))
    found = input_statistics(network, [batch], ["1"], 0)["1"]
    check(found, both_ways(batch).reshape(-1, 12).double().numpy().T[None], 6)
    assert found.positions == 3


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 3), nn.Linear(9, 4)], ids=["conv", "linear"])
def test_few_positions_are_a_sample_of_all_that_the_seed_draws(monkeypatch, module):
    monkeypatch.setattr(moments, "POSITIONS", 5)
    batch = images(4)
    found, same, other = (measured(module, batch, seed) for seed in (0, 0, 1))
    assert found.positions == 5
    np.testing.assert_array_equal(found.second, same.second)
    assert not np.array_equal(found.second, other.second)
    if isinstance(module, nn.Conv2d):
        every = patches(module, both_ways(batch)).reshape(27, 8, 35).mean(1)
        draws = np.stack([measured(module, batch, seed).mean[0] for seed in range(100)])
        np.testing.assert_allclose(draws.mean(0), every.mean(1), atol=0.1)


def test_mirror_images_count():
    module = nn.Conv2d(3, 4, 3)
    batch = images(2)
    np.testing.assert_allclose(measured(module, batch).second, measured(module, batch.flip(3)).second, atol=1e-5)
    assert measured(module, batch).images == 4


def test_batches_do_not_matter():
    module = nn.Conv2d(3, 4, 3, padding=1)
    batch = images(5)
    network = nn.Sequential(module).eval()
    apart = input_statistics(network, [batch[:2], batch[2:4], batch[4:]], ["0"], 0)["0"]
    together = input_statistics(network, [batch], ["0"], 0)["0"]
    np.testing.assert_allclose(apart.mean, together.mean, atol=1e-5)
    np.testing.assert_allclose(apart.second, together.second, atol=1e-5)
    assert (apart.images, apart.positions) == (together.images, together.positions)


def test_merged_moments_are_those_of_all_images():
    network = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    batch = images(7)
    first, second, whole = (input_statistics(network, [part], ["0"], 0)["0"] for part in (batch[:2], batch[2:], batch))
    found = merged(first, second)
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(found.second, whole.second, atol=1e-5)
    assert (found.images, found.positions) == (whole.images, whole.positions)


def test_of_very_many_inputs_only_the_energies_are_kept(monkeypatch):
    module, batch = nn.Conv2d(4, 4, 3, groups=2), images(2, 4)
    whole = measured(module, batch)
    monkeypatch.setattr(moments, "MOST_COLUMNS", 17)
    few = measured(module, batch)
    assert few.second.shape == (2, 18)
    np.testing.assert_allclose(few.second, whole.energy, rtol=1e-5)
    np.testing.assert_allclose(few.energy, few.second)


def test_a_layer_that_is_never_called_is_an_error_and_no_hook_stays():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, inputs):
            return self.used(inputs)

    network = Unused().eval()
    with pytest.raises(
        UserError, match=r"layer 'idle' is never called for these images; exclude it from sharing \(exclude="
    ):
        input_statistics(network, [images(1)], ["used", "idle"], 0)
    assert not network.used._forward_hooks
    assert not network.idle._forward_hooks


@pytest.fixture
def calibration() -> Calibration:
    network = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 3, 1)).eval()
    first, second = (input_statistics(network, [images(2, 4, seed=seed)], ["0", "1"], 0) for seed in (0, 1))
    return Calibration((first, second), 2)


def write(path: Path, calibration: Calibration) -> Path:
    write_calibration(path, calibration, {"images": 4, "seed": 0}, {"model": "0" * 64})
    return path


@pytest.mark.parametrize("threads", [1, 2])
def test_halves_are_measured_apart_and_know_their_border(threads):
    network = fast(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())
    pictures = ImageArray(images(9), None)
    found = calibrate(network, pictures, ["0"], 0, threads)
    border = pictures.middle()
    assert (found.border, len(pictures)) == (4, 9)
    for half, part in zip(found.halves, (pictures.part(0, border), pictures.part(border, 9)), strict=True):
        expected = input_statistics(network, part.batches(), ["0"], 0)["0"]
        np.testing.assert_array_equal(half["0"].second, expected.second)
        assert half["0"].images == expected.images == 2 * len(part)
    together, expected = found.together()["0"], merged(*(half["0"] for half in found.halves))
    np.testing.assert_array_equal(together.second, expected.second)
    assert together.images == 18


def test_what_is_written_is_read_back(tmp_path, calibration):
    found = read_calibration(write(tmp_path / "calibration.h5", calibration), ["1", "0"])
    assert [list(half) for half in found.halves] == [["1", "0"]] * 2
    assert found.border == 2
    for half, original in zip(found.halves, calibration.halves, strict=True):
        for name, layer in half.items():
            np.testing.assert_array_equal(layer.mean, original[name].mean)
            np.testing.assert_array_equal(layer.second, original[name].second)
            assert (layer.images, layer.positions) == (original[name].images, original[name].positions)
    assert not np.array_equal(found.halves[0]["0"].mean, found.halves[1]["0"].mean)


def test_a_missing_layer_is_named(tmp_path, calibration):
    path = write(tmp_path / "calibration.h5", calibration)
    with pytest.raises(FormatError, match=r"calibration.h5: no layer 'fc'; make or get it again"):
        read_calibration(path, ["0", "fc"])


@pytest.mark.parametrize("part", ["mean", "second"])
def test_a_damaged_or_missing_array_is_told(tmp_path, calibration, part):
    path = write(tmp_path / "calibration.h5", calibration)
    with h5py.File(path, "r") as file:
        values = file["1/0"][part]
        start = values.id.get_chunk_info(0).byte_offset
    octets = bytearray(path.read_bytes())
    octets[start] ^= 1
    path.write_bytes(octets)
    with pytest.raises(FormatError, match=r"calibration.h5: damaged .*; make or get it again"):
        read_calibration(path, ["0"]).halves[1]["0"]
    write(path, calibration)
    with h5py.File(path, "a") as file:
        del file["1/0"][part]
    with pytest.raises(FormatError, match=r"calibration.h5: damaged .*; make or get it again"):
        read_calibration(path, ["0"]).halves[1]["0"]


def test_an_incomplete_file_is_told(tmp_path, calibration):
    path = write(tmp_path / "calibration.h5", calibration)
    with h5py.File(path, "a") as file:
        file.attrs["complete"] = False
    with pytest.raises(FormatError, match="not a complete"):
        read_calibration(path, ["0"])
