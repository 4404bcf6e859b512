"""Images for a GPU, and what is computed there: as on the CPU, but for rounding."""

import copy
from collections.abc import Callable

import h5py
import numpy as np
import pytest
import torch

from tests.networks import random_weights
from wshare.calibration.importance import fisher_diagonal
from wshare.calibration.sensitivity import profile
from wshare.calibration.statistics import calibrate, input_statistics
from wshare.data.devices import device_named, device_of, exact, placed
from wshare.data.images import DeviceImages, ImageArray, ImageFile, Images
from wshare.errors import FormatError, UserError
from wshare.evaluation.predict import predict
from wshare.files.tables import read_sealed
from wshare.models import zoo as networks
from wshare.models.state import CPU, fast
from wshare.tasks import classification

from ..calibration.test_sensitivity import clusters_of
from ..search.rate_distortion.test_stages import SHARED, Study

PLENTY = 1 << 40


def in_memory(count: int, shape: tuple[int, int, int]) -> ImageArray:
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return ImageArray(images, np.arange(count))


def all_of(images: Images) -> torch.Tensor:
    return torch.cat(list(images.batches()))


@pytest.mark.parametrize("room", [PLENTY, 0])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_images_on_a_device_are_those_of_the_source(random_images, room, kind):
    """Kept there or sent batch by batch."""
    source = random_images(70, (3, 96, 96)) if kind == "file" else in_memory(70, (3, 96, 96))
    images = DeviceImages(source, CPU, room)
    assert (images.keys, images.fingerprint, images.shape) == (source.keys, source.fingerprint, source.shape)
    np.testing.assert_array_equal(images.labels, source.labels)
    assert images.batch_size > source.batch_size
    for size in (images.batch_size, 16):
        images.batch_size = size
        torch.testing.assert_close(all_of(images), all_of(source), rtol=0, atol=0)
    part, expected = images.part(40, 70).part(10, 25), source.part(40, 70).part(10, 25)
    assert part.keys == expected.keys
    torch.testing.assert_close(all_of(part), all_of(expected), rtol=0, atol=0)
    assert images.middle() == source.middle() == 18
    assert part.middle() == expected.middle()


def test_images_too_large_for_a_device_are_told_of(random_images, caplog):
    caplog.set_level("INFO")
    source = random_images(8, (3, 16, 16))
    DeviceImages(source, CPU, 8 * 3 * 16 * 16)
    assert caplog.text == ""
    DeviceImages(source, CPU, 8 * 3 * 16 * 16 - 1)
    assert "are sent to the GPU batch by batch" in caplog.text


@pytest.mark.parametrize("room", [PLENTY, 0])
def test_a_damaged_image_is_found_on_its_way_to_a_device(random_images, tmp_path, room):
    random_images(12)
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path, "r+") as file:
        file["images"][7] ^= 1
    with pytest.raises(FormatError, match="image '7' damaged"):
        all_of(DeviceImages(ImageFile(path), CPU, room))


@pytest.mark.slow
@pytest.mark.parametrize(("side", "size"), [(8, 1024), (224, 128), (299, 71), (4096, 1)])
def test_a_batch_fits_a_device(side, size):
    images = DeviceImages(ImageArray(torch.zeros(1, 3, side, side), None), CPU, PLENTY)
    assert images.batch_size == size


def test_no_gpu_is_the_cpu():
    images = in_memory(2, (1, 8, 8))
    assert device_of(0) == CPU
    assert placed(images, CPU) is images


def test_more_than_one_gpu_is_refused():
    with pytest.raises(UserError, match="2 GPUs for one job; it uses one"):
        device_of(2)


@pytest.mark.parametrize("name", [None, "cpu", CPU])
def test_the_cpu_by_name(name):
    assert device_named(name) == CPU


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device 'cuda': torch .* sees 0 GPUs; .* or leave device out to compute on the CPU"),
        ("mps", "device 'mps': must be cpu, cuda or cuda:<number>"),
        ("gpu", "device 'gpu': must be cpu, cuda or cuda:<number>"),
        (torch.device("meta"), "device 'meta': must be"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"^{message}"):
        device_named(name)


def test_gpus_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("cuda") == torch.device("cuda", 0)
    assert device_named("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="device 'cuda:2': torch .* sees 2 GPUs"):
        device_named("cuda:2")


def test_settings_of_torch_are_the_callers_again(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    with exact(torch.device("cuda", 0)):
        assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic) == (False, False, True)
    assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic) == before


def test_a_gpu_that_is_not_there_ends_the_job(monkeypatch):
    """It does not compute on the CPU in its place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"a GPU is asked for, and torch .* sees none; check the driver"):
        device_of(1)


def test_half_precision_computes_in_float16(random_images):
    source = random_images(20)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    float16, full = predict(model, source, float16=True), predict(model, source)
    assert float16.dtype == full.dtype == np.float32
    assert 0 < np.abs(float16 - full).max() < 1e-2 * np.abs(full).max()


def network(name: str, device: torch.device) -> torch.nn.Module:
    model = networks.tiny().eval() if name == "tiny" else random_weights(name)
    return fast(model, device)


def close(found: np.ndarray, expected: np.ndarray, share: float) -> None:
    assert np.abs(found - expected).max() <= share * np.abs(expected).max()


PUBLISHED = ["mobilenet_v2", "resnet50", "efficientnet_b0", "googlenet"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", *PUBLISHED])
@pytest.mark.parametrize("room", [PLENTY, 0])
def test_a_gpu_gives_the_logits_of_the_cpu(name, room):
    device = device_of(1)
    torch.manual_seed(0)
    source = in_memory(40, (1, 8, 8) if name == "tiny" else (3, 96, 96))
    expected = predict(network(name, CPU), source)
    torch.manual_seed(0)
    model, images = network(name, device), DeviceImages(source, device, room)
    assert next(model.parameters()).is_cuda
    close(predict(model, images), expected, 1e-4)
    close(predict(model, images, threads=3), expected, 1e-4)
    float16 = predict(model, images, float16=True)
    # Random weights amplify rounding, which has 11 bits in place of 24.
    close(float16, expected, 0.1)
    assert np.abs(float16 - expected).max() > 10 * np.abs(predict(model, images) - expected).max()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "mobilenet_v2"])
def test_a_gpu_measures_what_the_cpu_measures(name):
    device = device_of(1)
    source = in_memory(24, (1, 8, 8) if name == "tiny" else (3, 96, 96))
    found = {}
    for where in (CPU, device):
        torch.manual_seed(0)
        model, images = network(name, where), placed(source, where)
        layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)][:6]
        found[where] = (
            fisher_diagonal(classification, model, images.batches(), layers, 0),
            input_statistics(model, images.batches(), layers, 0),
            calibrate(model, images, layers, 0),
        )
    (fisher, moments, halves), (fisher_here, moments_here, halves_here) = found[CPU], found[device]
    assert halves_here.border == halves.border
    for layer in fisher:
        close(fisher_here[layer], fisher[layer], 1e-2)
        for one, other in [(moments_here, moments), *zip(halves_here.halves, halves.halves, strict=True)]:
            assert (one[layer].images, one[layer].positions) == (other[layer].images, other[layer].positions)
            close(one[layer].mean, other[layer].mean, 1e-3)
            close(one[layer].second, other[layer].second, 1e-3)


@pytest.mark.gpu
def test_a_gpu_profiles_layers_as_the_cpu_does(random_images):
    device, source = device_of(1), random_images(70)
    torch.manual_seed(0)
    here = network("tiny", CPU)
    layers = clusters_of(here, ["conv", "depthwise", "fc"])
    there = fast(copy.deepcopy(here), device)
    reference = predict(here, source)
    expected, found = (
        profile(classification, here, layers, source, reference),
        profile(classification, there, layers, placed(source, device), reference),
    )
    assert [(probe.layer, probe.k) for probe in found] == [(probe.layer, probe.k) for probe in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score.kl == pytest.approx(other.score.kl, rel=1e-3, abs=1e-7)
    assert max(probe.score.kl for probe in expected) > 1e-4


@pytest.fixture
def study_of(tmp_path, random_images: Callable[..., ImageFile]) -> Callable[[int], Study]:
    def make(gpus: int) -> Study:
        folder = tmp_path / str(gpus)
        folder.mkdir()
        study = Study(folder, random_images, gpus=gpus)
        study.measure_inputs()
        return study

    return make


@pytest.mark.gpu
def test_a_search_on_a_gpu_finds_what_one_on_the_cpu_finds(study_of, caplog):
    caplog.set_level("INFO")
    settings = {"quality_target": 0.5, "max_kl": 0.02, "evaluations": 10}
    here, there = study_of(0), study_of(1)
    expected, found = here.search(**settings), there.search(**settings)
    printed = caplog.text
    assert f"on {torch.cuda.get_device_name(0)}" in printed
    assert "float16 alone costs" in printed
    assert expected["precision"] == "float32"
    assert found["on_search_images"]["kl_high"] <= 0.02
    # Errors are fed back, so that one rounding changes what follows; what comes of it is as good.
    measured = [
        {row["layer"]: float(row["measured"]) for row in read_sealed(study.folder / "losses.csv")[0]}
        for study in (here, there)
    ]
    for name in SHARED:
        assert measured[1][name] == pytest.approx(measured[0][name], rel=0.25, abs=1e-5)
    rates = [study.pack()["analytic_bits"] for study in (here, there)]
    assert rates[1] == pytest.approx(rates[0], rel=0.1)
