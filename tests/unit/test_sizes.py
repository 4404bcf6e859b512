"""Images of different sizes, for networks that take any: from Python, through files, and by the commands."""

import json
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

import wshare
from wshare.cli import main
from wshare.data.devices import placed
from wshare.data.images import DeviceImages, ImageFile, normalised
from wshare.data.prepare import prepare
from wshare.data.stored import image_at, write_images
from wshare.errors import FormatError, UserError
from wshare.evaluation.predict import predict
from wshare.models.preprocessing import complete_preprocessing, input_shape
from wshare.packed.format import load_packed

PREPROCESSING = {"channels": 3, "crop": None, "mean": [0.5] * 3, "std": [0.25] * 3}
COUNT, CLASSES = 120, 3


def network() -> nn.Module:
    """Which channel is brightest, of images of any size."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)),
    )
    with torch.no_grad():
        for layer in (model[0], model[3], model[7]):
            layer.weight.mul_(0.05)
        model[0].weight[:3, :, 1, 1] += torch.eye(3)
        model[3].weight[:3, :3, 1, 1] += torch.eye(3)
        model[7].weight[:, :3] += 4 * torch.eye(3)
    return model.eval()


def of_one_size() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 6, CLASSES)).eval()


def pictures(count: int = COUNT) -> tuple[list[np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, count)
    sizes = random.integers(6, 14, (count, 2))
    found = [
        np.clip(random.normal(110 + 12 * np.eye(CLASSES)[label], 40, (*size, 3)), 0, 255).astype(np.uint8)
        for label, size in zip(labels, sizes, strict=True)
    ]
    return found, labels


def as_taken(pixels: np.ndarray) -> torch.Tensor:
    return normalised(pixels.transpose(2, 0, 1)[None], PREPROCESSING["mean"], PREPROCESSING["std"])


def outputs(model: nn.Module, found: list[np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return torch.cat([model(as_taken(pixels)) for pixels in found]).numpy()


SEARCH = {"quality": 0.9, "confidence": None, "options": {"evaluations": 3, "probe_images": 8}}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rate_distortion", "slope"])
def test_images_of_different_sizes_are_compressed_from_python(method):
    found, labels = pictures()
    images = [as_taken(pixels) for pixels in found]
    options = SEARCH["options"] if method == "rate_distortion" else {"evaluations": 3}
    result = wshare.compress(network(), images[:80], labels[:80], held_out=(images[80:], labels[80:]), method=method,
                             **SEARCH | {"options": options})  # fmt: skip
    assert result.metrics["compressed"]["images"] == COUNT - 80
    for model, key in ((network(), "float32"), (result.model, "compressed")):
        right = (outputs(model, found[80:]).argmax(1) == labels[80:]).mean()
        assert result.metrics[key]["top1"] == pytest.approx(right)
    assert 0.5 < result.metrics["float32"]["top1"] < 1
    assert result.metrics["compression_rate"]["on_disk"] > 2
    again = wshare.compress(network(), images[:80], labels[:80], held_out=(images[80:], labels[80:]), method=method,
                            threads=2, **SEARCH | {"options": options})  # fmt: skip
    assert again.packed == result.packed


def test_a_network_of_one_size_ends_in_one_line():
    found, _ = pictures(20)
    images = [torch.zeros(1, 3, 6, 8), *(as_taken(pixels) for pixels in found)]
    with pytest.raises(UserError, match=r"(fails on an image|model: fails on images) \[3, \d+, \d+\]") as error:
        wshare.compress(of_one_size(), images, **SEARCH)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"outputs have different shapes, such as \[16, .*; give images of one size"):
        wshare.compress(network()[:5], images, task="regression", **SEARCH)


def stored(folder: Path, found: list[np.ndarray], **preprocessing) -> Path:
    settings = complete_preprocessing({}, PREPROCESSING | preprocessing)
    images = [prepare(PIL.Image.fromarray(pixels), settings) for pixels in found]
    images.insert(1, None)
    keys = [f"{place}.png" for place in range(len(images))]
    write_images(folder / "images.h5", images, np.arange(len(images)), keys, settings, {})
    return folder / "images.h5"


def test_a_file_keeps_images_of_different_sizes(tmp_path):
    found, _ = pictures(9)
    images = ImageFile(stored(tmp_path, found))
    assert (images.batch_size, len(images), images.skipped) == (1, 9, 1)
    assert images.labels.tolist() == [0, *range(2, 10)]
    for batch, pixels in zip(images.batches(), found, strict=True):
        assert torch.equal(batch, as_taken(pixels))
    assert torch.equal(images.part(3, 8).part(1, 3).batch(1), as_taken(found[5]))
    with h5py.File(images.path) as file:
        for place, pixels in enumerate(found):
            np.testing.assert_array_equal(image_at(file, place), pixels.transpose(2, 0, 1))
    few = ImageFile(images.path, limit=4)
    assert torch.equal(few.batch(3), as_taken(found[3]))
    assert len(few) == 4
    # On a GPU they come one by one.
    there = DeviceImages(images, torch.device("cpu"), 1 << 30)
    assert there.batch_size == 1
    assert torch.equal(there.batch(7), as_taken(found[7]))
    assert placed(images, torch.device("cpu")) is images
    np.testing.assert_allclose(predict(network(), images, 2), outputs(network(), found), rtol=1e-4, atol=1e-5)


def test_images_that_have_one_size_after_all_come_in_batches(tmp_path):
    found = [pixels[:6, :6] for pixels in pictures(9)[0]]
    images = ImageFile(stored(tmp_path, found))
    assert images.batch_size > 1
    assert torch.equal(images.batch(0), torch.cat([as_taken(pixels) for pixels in found]))


def test_damage_of_a_file_of_different_sizes_is_seen(tmp_path):
    path = stored(tmp_path, pictures(9)[0])
    with h5py.File(path, "r+") as file:
        shapes = file["shapes"][:]
        shapes[2] = shapes[2, [0, 2, 1]]
        file["shapes"][:] = shapes
    with pytest.raises(FormatError, match="damaged"):
        ImageFile(path)
    path = stored(tmp_path, pictures(9)[0])
    with h5py.File(path, "r+") as file:
        file["images"][700] ^= 1
    images = ImageFile(path)
    with pytest.raises(FormatError, match="damaged"):
        list(images.batches())


@pytest.mark.parametrize(
    ("given", "shape"),
    [({}, [3, 224, 224]), ({"resize": 64}, [3, 64, 64]), ({"resize": [32, 64], "channels": 1}, [1, 32, 64])],
)
def test_an_example_of_the_input_has_the_size_that_images_have(given, shape):
    assert input_shape(complete_preprocessing({"channels": 3, "crop": 7}, {"crop": None} | given)) == shape


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "preprocessing.crop: None: must be the side"),
        ({"crop": None, "letterbox": 3}, "preprocessing.crop: null: not read with letterbox"),
        ({"crop": None, "resize": 0}, "preprocessing.resize: 0: must be null, the shorter side"),
    ],
)
def test_no_crop_must_be_said_and_leaves_no_room_for_a_letterbox(given, told):
    with pytest.raises(UserError, match=told):
        complete_preprocessing({"channels": 3}, given)


@pytest.mark.slow
def test_images_of_different_sizes_are_compressed_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, labels = pictures()
    for place, (pixels, label) in enumerate(zip(found, labels, strict=True)):
        path = Path("images", str(label), f"{place}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
    given = [
        *("--architecture", "python:tests.unit.test_sizes:network", "--preprocessing", json.dumps(PREPROCESSING)),
        *("--images", "images", "--class-map", "sorted"),
    ]
    options = ["--quality", "0.9", "--confidence", "none", "--options", '{"evaluations": 3, "probe_images": 0}']
    assert main(["compress", *given, *options, "--output", "net"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *given, "--packed", "net"]) == 0
    told = json.loads(capsys.readouterr().out)
    model = network()
    before = (outputs(model, found).argmax(1) == labels).mean()
    model.load_state_dict(load_packed("net"))
    assert told["float32"]["top1"] == pytest.approx(before)
    assert told["compressed"]["top1"] == pytest.approx((outputs(model, found).argmax(1) == labels).mean())
