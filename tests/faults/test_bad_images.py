"""Images that cannot be read, or that are not what they seem: the file is named; what can be read is converted."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from wshare.cli import main
from wshare.images import ImageFile
from wshare.storage import write_json

WNIDS = ("n01440764", "n01443537")
PREPROCESSING = {"channels": 3, "resize": 16, "crop": 16, "interpolation": "bilinear"}
PREPROCESSING |= {"mean": [0.5] * 3, "std": [0.25] * 3}


def jpeg(mode: str = "RGB", size: tuple[int, int] = (20, 24), **options) -> bytes:
    """A JPEG of a gradient."""
    ramp = np.linspace(0, 255, size[0] * size[1]).astype(np.uint8).reshape(size[::-1])
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
        path.write_bytes(jpeg())
    write_json("model.json", {"preprocessing": PREPROCESSING})
    return Path("images")


def prepare(**changes: object) -> int:
    settings = {"source": "imagefolder", "path": "images", "class_map": None, "labels": True, "enlarge": True}
    settings |= {"split": {"search": 3, "held_out": 3}, "seed": 0} | changes
    arguments = ["--settings", json.dumps(settings), "--spec", "model.json"]
    return main(["prepare_images", *arguments, "--search", "out/search.h5", "--held-out", "out/held_out.h5"])


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


def test_other_kinds_of_images_are_converted(folder, fault):
    row = fault(11, "CMYK, grey, 16-bit and turned images", data="converted as torchvision does; 16 bits scaled")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
    (folder / WNIDS[0] / "0.jpg").write_bytes(jpeg("CMYK"))
    (folder / WNIDS[0] / "2.jpg").write_bytes(jpeg("L"))
    (folder / WNIDS[0] / "4.jpg").write_bytes(jpeg(exif=exif))
    PIL.Image.fromarray(ramp).save(folder / WNIDS[1] / "1.png")
    (folder / WNIDS[1] / "1.jpg").unlink()
    assert prepare() == 0
    shapes = [ImageFile(f"out/{split}.h5").batch(0).shape for split in ("search", "held_out")]
    assert shapes == [(3, 3, 16, 16)] * 2
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
