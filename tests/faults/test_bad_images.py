"""Images that cannot be read, or that are not what they seem: the file is named; what can be read is converted."""

import io
import json
import re
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from wshare.cli import main
from wshare.config.validation import complete
from wshare.data.images import ImageFile
from wshare.files.sealed import read_json, write_json

from .pipeline import MODEL, R, run, write_network

WNIDS = ("n01440764", "n01443537")
PREPROCESSING = {"channels": 3, "resize": 16, "crop": 16, "interpolation": "bilinear"}
PREPROCESSING |= {"mean": [0.5] * 3, "std": [0.25] * 3}


def jpeg(mode: str = "RGB", size: tuple[int, int] = (20, 24), number: int = 0, **options) -> bytes:
    """A JPEG of a gradient, another one for each number."""
    ramp = np.linspace(4 * number, 255, size[0] * size[1]).astype(np.uint8).reshape(size[::-1])
    image = PIL.Image.fromarray(ramp).convert("RGB").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Six images of two classes, below the working directory."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        path = Path("images", WNIDS[number % 2], f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number=number))
    write_json("model.json", {"preprocessing": PREPROCESSING})
    return Path("images")


def dataset(**changes: object) -> dict:
    """Settings of the folder; the defaults are those of the schema."""
    given = {"source": "imagefolder", "path": "images", "split": {"search": 3, "held_out": 3}} | changes
    model = {"source": "torchvision", "architecture": "resnet18", "dataset": "d"}
    searches = {"s": {"method": "slope", "confidence": None}}
    config = {"datasets": {"d": given}, "models": {"m": model}, "searches": searches}
    return complete(config)["datasets"]["d"]


def prepare(**changes: object) -> int:
    arguments = ["--settings", json.dumps(dataset(**changes) | {"seed": 0}), "--spec", "model.json"]
    arguments += ["--search-images", "out/search.h5", "--held-out-images", "out/held_out.h5"]
    return main(["prepare_images", *arguments])


def error_of(capsys: pytest.CaptureFixture) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line


UNREADABLE = {
    "zero bytes": b"",
    "text": b"not an image",
    "HTML page": b"<!DOCTYPE html><html></html>",
    "truncated": jpeg()[:400],
    "truncated by a byte": jpeg(size=(200, 200))[:-900],
    "front of a PNG": b"\x89PNG\r\n\x1a\n" + bytes(40),
}


@pytest.mark.parametrize("name", list(UNREADABLE))
def test_an_image_that_cannot_be_read_is_named(folder, fault, capsys, name):
    row = fault(11, "image that cannot be read", data="stops with the file's name; nothing is left half done")
    bad = folder / WNIDS[1] / "3.jpg"
    bad.write_bytes(UNREADABLE[name])
    assert prepare() == 1
    assert f"{bad}: unreadable image" in error_of(capsys)
    assert not any(path.name.startswith(".") for path in Path("out").iterdir())
    row.round(True)


def test_all_images_that_cannot_be_read_are_named(folder, fault, capsys):
    row = fault(11, "several images that cannot be read", data="stops with all their names")
    bad = [folder / WNIDS[0] / "0.jpg", folder / WNIDS[1] / "5.jpg", folder / WNIDS[1] / "1.jpg"]
    for path in bad:
        path.write_bytes(b"")
    assert prepare() == 1
    error = error_of(capsys)
    assert "3 unreadable images" in error
    assert all(str(path) in error for path in bad)
    row.round(True)


SKIPPED = {
    "name": "images that cannot be read, with `on_bad_image: skip`",
    "data": "left out, counted and named; the other images are those of a whole folder",
}


@pytest.mark.parametrize("name", list(UNREADABLE))
def test_an_image_that_cannot_be_read_is_skipped_if_that_is_asked_for(folder, fault, capfd, name):
    row = fault(11, **SKIPPED)
    assert prepare() == 0
    whole = {split: ImageFile(f"out/{split}.h5") for split in ("search", "held_out")}
    bad = folder / WNIDS[1] / "3.jpg"
    bad.write_bytes(UNREADABLE[name])
    capfd.readouterr()
    assert prepare(on_bad_image="skip") == 0
    printed = capfd.readouterr().out
    for split, before in whole.items():
        after, key = ImageFile(f"out/{split}.h5"), str(bad.relative_to(folder))
        kept = [place for place, own in enumerate(before.keys) if own != key]
        assert after.keys == tuple(before.keys[place] for place in kept)
        assert np.array_equal(after.labels, before.labels[kept])
        assert np.array_equal(after.batch(0), before.batch(0)[kept])
        assert (before.skipped, after.skipped) == (0, len(before) - len(kept))
        assert (f"{split}: skipped, 1 of 3 images are unreadable: {bad}" in printed) == (after.skipped == 1)
    row.round(True)


def test_the_first_ten_images_that_are_skipped_are_named(folder, fault, capfd):
    row = fault(11, **SKIPPED)
    for number in range(10, 30):
        (folder / WNIDS[0] / f"{number}.jpg").write_bytes(b"")
    assert prepare(on_bad_image="skip", split={"search": 20, "held_out": 6}) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("search: ")]
    found = re.fullmatch(r"search: skipped, (\d+) of 20 images are unreadable: (.*) and (\d+) more", line)
    named = found[2].split(", ")
    assert len(named) == 10
    assert named == sorted(named)
    assert all(Path(name).read_bytes() == b"" for name in named)
    skipped = ImageFile("out/search.h5").skipped
    assert int(found[1]) == 10 + int(found[3]) == skipped
    assert skipped + ImageFile("out/held_out.h5").skipped == 20
    row.round(True)


def test_a_split_of_which_no_image_is_left_is_refused(folder, fault, capsys):
    row = fault(11, **SKIPPED)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    assert prepare(on_bad_image="skip") == 1
    assert "split 'search': no image is left, 3 of 3 images are unreadable: images/" in error_of(capsys)
    assert not any(Path("out").iterdir())
    row.round(True)


def training(**changes: object) -> int:
    """Exit code of `train_model` on the folder."""
    recipe = {"epochs": 1, "learning_rate": 0.01, "batch_size": 2, "shift": 0, "floor": 0}
    settings = {"architecture": "tiny", "arguments": {}, "preprocessing": {"channels": 1, "crop": 8}, "seed": 0}
    data = dataset(class_map="sorted", split={"train": 4, "search": 2, "held_out": 1}, **changes)
    # As the rule gives it: how many are held out is no matter of training.
    del data["split"]["held_out"]
    settings |= {"training": recipe, "dataset": data}
    files = ["--weights", "out/weights.safetensors", "--spec", "out/model.json"]
    return main(["train_model", "--settings", json.dumps(settings), *files])


def test_images_to_train_on_are_named_or_skipped(folder, fault, capfd):
    row = fault(11, **SKIPPED)
    # The first of the folder tells the size of all: another has to do.
    bad = [folder / WNIDS[0] / "0.jpg", folder / WNIDS[1] / "5.jpg"]
    for path in bad:
        path.write_bytes(b"")
    assert training() == 1
    assert re.search(r"error: 2 unreadable images; .*0\.jpg, .*5\.jpg", capfd.readouterr().err)
    assert training(on_bad_image="skip") == 0
    assert sum(map(int, re.findall(r"skipped, (\d) of", capfd.readouterr().out))) == 2
    row.tried(2)


def test_skipped_images_are_counted_in_the_baseline(tmp_path, monkeypatch, fault):
    """The float32 network and the packed file are measured on the same images: those of one file."""
    row = fault(11, **SKIPPED)
    monkeypatch.chdir(tmp_path)
    write_network()
    for number in range(60):
        path = Path("images", f"{number}.jpg")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if number % 20 == 0 else jpeg("L", number=number))
    settings = dataset(labels=False, on_bad_image="skip", split={"search": 40, "held_out": 20}) | {"seed": 0}
    made = ["--search-images", f"{R}/images/search.h5", "--held-out-images", f"{R}/images/held_out.h5"]
    assert main(["prepare_images", "--settings", json.dumps(settings), "--spec", MODEL["spec"], *made]) == 0
    assert run("evaluate_dense") == 0
    found = read_json(f"{R}/baseline/metrics.json")
    assert found["search"]["skipped"] + found["held_out"]["skipped"] == 3
    assert found["search"]["images"] + found["search"]["skipped"] == 40
    assert found["held_out"]["images"] + found["held_out"]["skipped"] == 20
    row.round(True)


def test_other_kinds_of_images_are_converted(folder, fault):
    row = fault(11, "CMYK, grey, 16-bit and turned images", data="converted as torchvision does; 16 bits scaled")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
    (folder / WNIDS[0] / "0.jpg").write_bytes(jpeg("CMYK", number=6))
    (folder / WNIDS[0] / "2.jpg").write_bytes(jpeg("L", number=7))
    (folder / WNIDS[0] / "4.jpg").write_bytes(jpeg(number=8, exif=exif))
    PIL.Image.fromarray(ramp).save(folder / WNIDS[1] / "1.png")
    (folder / WNIDS[1] / "1.jpg").unlink()
    assert prepare() == 0
    geometry = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16)])
    # torchvision's loader cuts 16 bits off at 255.
    scaled = PIL.Image.fromarray(np.rint(ramp / 257).astype(np.uint8)).convert("RGB")
    for split in ("search", "held_out"):
        with h5py.File(f"out/{split}.h5") as file:
            pixels = file["images"][:]
        for found, key in zip(pixels, ImageFile(f"out/{split}.h5").keys, strict=True):
            image = scaled if key.endswith(".png") else default_loader(folder / key)
            assert np.array_equal(found, np.asarray(geometry(image)).transpose(2, 0, 1)), key
    row.tried(4)


def test_a_missing_class_folder_and_a_wrong_count_are_told(folder, fault, capsys):
    row = fault(11, "missing class folder, wrong count of images or labels", data="stops with what is wrong")
    assert prepare(split={"search": 5, "held_out": 5}) == 1
    assert "search 5 + held_out 5 = 10 images, but the data set has 6" in error_of(capsys)
    row.round(True)
    Path("map.json").write_text(json.dumps({WNIDS[0]: 0}))
    assert prepare(class_map="map.json") == 1
    assert f"class_map map.json: no index for folder images/{WNIDS[1]}" in error_of(capsys)
    row.round(True)
    for path in (folder / WNIDS[1]).iterdir():
        path.unlink()
    assert prepare() == 1
    assert f"images/{WNIDS[1]}: class folder without images" in error_of(capsys)
    row.round(True)
