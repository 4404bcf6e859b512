"""Links, hidden files, endings and names of any script: the same images whichever way a collection is given."""

import csv
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.unit.data.pictures import assert_sound, noise, one_line, save
from wshare.commands.common import open_folder
from wshare.data.dataset import Dataset, UnreadableImage
from wshare.data.images import ImageFile
from wshare.data.registry import open_dataset
from wshare.data.stored import write_images
from wshare.errors import UserError

# A path that holds "linked" or "more" is, or lies behind, a link to an image or a folder elsewhere.
IMAGES = (
    "Grüne Äpfel/ein Bild.JPG",
    "Grüne Äpfel/linked.png",
    "Grüne Äpfel/more/c.Jpeg",
    "linked class/a.png",
    "linked class/b b.TIFF",
    "猫 и собака/ほし.PNG",
    "猫 и собака/深い/ 1 .webp",
)
LABELS = [0, 0, 0, 1, 1, 2, 2]
HIDDEN = ("._x.jpg", ".DS_Store", "Grüne Äpfel/._ein Bild.JPG", "猫 и собака/.thumbnails/ほし.PNG")
HIDDEN_FOLDERS = ("__MACOSX/Grüne Äpfel/ein Bild.JPG", "Grüne Äpfel/@eaDir/ein Bild.JPG", ".cache/a.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root, elsewhere = tmp_path / "all of them", tmp_path / "elsewhere"
    for place, name in enumerate(IMAGES):
        start = elsewhere if "linked" in name or "more" in name else root
        save(start / name, noise(4, 5, 3, seed=place), format="PNG")
    (root / IMAGES[1]).symlink_to(elsewhere / IMAGES[1])
    (root / "Grüne Äpfel" / "more").symlink_to(elsewhere / "Grüne Äpfel" / "more")
    (root / "linked class").symlink_to(elsewhere / "linked class")
    for name in (*HIDDEN, *HIDDEN_FOLDERS):
        save(root / name, noise(4, 5, 3, seed=99), format="PNG")
    # Without an end.
    (root / "猫 и собака" / "again").symlink_to(root)
    (root / "猫 и собака" / "again too").symlink_to(root / "猫 и собака")
    return root


def in_class_folders(root: Path) -> Dataset:
    return open_dataset({"source": "imagefolder", "path": str(root), "class_map": "sorted"})


def by_a_map(root: Path) -> Dataset:
    # As a Mac writes names, with accents of their own.
    names = {
        unicodedata.normalize("NFD", name.split("/")[0]): index for name, index in zip(IMAGES, LABELS, strict=True)
    }
    (root.parent / "map.json").write_text(json.dumps(names))
    return open_dataset({"source": "imagefolder", "path": str(root), "class_map": str(root.parent / "map.json")})


def by_the_command(root: Path) -> Dataset:
    return open_folder(root, "sorted", False)


def without_labels(root: Path) -> Dataset:
    return open_dataset({"source": "imagefolder", "path": str(root), "labels": False})


def by_the_command_without_labels(root: Path) -> Dataset:
    return open_folder(root, None, True)


def rows() -> list[dict]:
    return [{"image": name, "label": str(label)} for name, label in zip(IMAGES, LABELS, strict=True)]


def in_a_table(root: Path) -> Dataset:
    with (root / "images.CSV").open("w", encoding="utf-8") as file:
        file.write("image, label\n")
        csv.writer(file).writerows(row.values() for row in rows())
    return open_dataset({"source": "table", "path": str(root / "images.CSV")})


def in_a_list(root: Path) -> Dataset:
    found = [row | {"image": unicodedata.normalize("NFD", row["image"])} for row in rows()]
    (root / "images.JSONL").write_text("\n".join(map(json.dumps, found)))
    return open_dataset({"source": "table", "path": str(root / "images.JSONL")})


LABELLED = [in_class_folders, by_a_map, by_the_command, in_a_table, in_a_list]


@pytest.mark.parametrize("opened", [*LABELLED, without_labels, by_the_command_without_labels])
def test_the_same_images_are_read_in_every_mode(folder, opened):
    (folder / IMAGES[0]).parent.joinpath("notes.txt").write_text("no image")
    # A table has an order of its own.
    expected = IMAGES if opened in (in_a_table, in_a_list) else tuple(sorted(IMAGES))
    dataset = opened(folder)
    assert tuple(unicodedata.normalize("NFC", key) for key in dataset.keys) == expected
    for place, key in enumerate(expected):
        np.testing.assert_array_equal(np.asarray(dataset.read(place)), noise(4, 5, 3, seed=IMAGES.index(key)))
    if opened in LABELLED:
        assert_sound(dataset)
        assert dataset.labels.tolist() == LABELS
    else:
        assert dataset.labels is None


@pytest.mark.parametrize("opened", [in_class_folders, without_labels, in_a_table])
def test_a_link_that_leads_nowhere_is_an_unreadable_image(folder, opened):
    (folder.parent / "elsewhere" / IMAGES[1]).unlink()
    dataset = opened(folder)
    with pytest.raises(UnreadableImage, match=r"linked\.png: unreadable image \(.*No such file"):
        dataset.read(1)


def test_a_class_folder_that_is_a_link_to_nowhere_is_told(folder):
    (folder / "linked class").unlink()
    (folder / "linked class").symlink_to("/nowhere/at/all")
    with pytest.raises(UserError) as error:
        in_class_folders(folder)
    assert one_line(error) == f"{folder / 'linked class'}: a link that leads nowhere; remove or correct it"


@pytest.mark.parametrize("opened", [in_class_folders, without_labels])
def test_a_name_that_is_no_utf8_is_a_name_like_others(tmp_path, opened):
    name = os.fsdecode(b"caf\xe9")
    try:
        save(tmp_path / "images" / name / f"{name}.jpg", noise(4, 5, 3), format="PNG")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    dataset = opened(tmp_path / "images")
    assert dataset.keys == (r"caf\xe9/caf\xe9.jpg",)
    pixels = np.asarray(dataset.read(0)).transpose(2, 0, 1)
    write_images(tmp_path / "images.h5", [pixels], None, list(dataset.keys), {"mean": [0] * 3, "std": [1] * 3}, {})
    assert ImageFile(tmp_path / "images.h5").keys == dataset.keys
    (tmp_path / "images" / name / f"{name}.jpg").write_bytes(b"damaged")
    with pytest.raises(UnreadableImage, match=r"caf\\xe9.jpg: unreadable image") as error:
        dataset.read(0)
    str(error.value).encode()


def test_a_picture_is_found_by_its_content_whatever_its_name_ends_in(tmp_path):
    PIL.Image.new("RGB", (3, 2)).save(tmp_path / "a.JPG", "PNG")
    assert without_labels(tmp_path).read(0).size == (3, 2)
