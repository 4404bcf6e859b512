"""Tables of paths and labels."""

import json

import numpy as np
import PIL.Image
import pytest

from wshare.data.registry import open_dataset
from wshare.errors import UserError

NAMES = ("Bild 1.PNG", "sub/ほし.jpg", "sub/c.png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for place, name in enumerate(NAMES):
        PIL.Image.new("RGB", (4, 3), (place, 0, 0)).save(tmp_path / name, "PNG")
    return tmp_path


def opened(path, **given):
    return open_dataset({"source": "table", "path": str(path)} | given)


def table(folder, rows, name="list.csv"):
    path = folder / name
    if name.endswith(".csv"):
        path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        path.write_text(json.dumps(rows))
    return path


def test_a_class_of_each_image_by_its_index(folder):
    found = opened(table(folder, [("image", "split", "label"), *((name, "a", str(i)) for i, name in enumerate(NAMES))]))
    assert found.keys == NAMES
    assert found.labels.tolist() == [0, 1, 2]
    assert (found.classes, found.folders, found.apart) == (None, None, True)
    assert [found.read(i).getpixel((0, 0)) for i in range(3)] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_a_class_of_each_image_by_its_name(folder, name):
    rows = [{"image": image, "label": label} for image, label in zip(NAMES, ("dog", "cat", "dog"), strict=True)]
    found = opened(table(folder, rows, name))
    assert found.labels.tolist() == [1, 0, 1]
    assert (found.classes, found.folders) == (2, ("cat", "dog"))


def test_several_classes_an_image(folder):
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    numbers = table(folder, [("image", "labels"), (NAMES[0], "0;2"), (NAMES[1], ""), (NAMES[2], " 1 ")])
    assert opened(numbers).labels.tolist() == expected
    names = [{"image": NAMES[0], "labels": ["a", "c"]}, {"image": NAMES[1], "labels": []}]
    names.append({"image": NAMES[2], "labels": ["b"]})
    found = opened(table(folder, names, "list.json"))
    assert found.labels.tolist() == expected
    assert found.labels.dtype == np.int64


@pytest.mark.parametrize("given", [{"labels": False}, {}])
def test_without_labels(folder, given):
    rows = [("image", "label") if given else ("image", "split"), *((name, "3") for name in NAMES)]
    assert opened(table(folder, rows), **given).labels is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("image", "label")], "list.csv: lists no image"),
        ([("images", "label"), ("a", "1")], "has no column 'image', but images, label. Did you mean 'images'"),
        (
            [("image",), ("gone.png",), (NAMES[2],)],
            "1 of 2 images are not there, such as .*gone.png; paths are relative",
        ),
        ([("image",), (NAMES[2],), (NAMES[2],)], "lists sub/c.png more than once"),
        ([("image", "label"), (NAMES[0], "")], "row 1 has '' in column 'label'; fill it in"),
        ([("image", "label"), (NAMES[0], "1"), (NAMES[1], "dog")], r"classes as indices \(1\) and as names \('dog'\)"),
        ([("image", "label", "labels"), (NAMES[0], "1", "2")], "has columns label and labels; leave one"),
    ],
)
def test_a_wrong_table_ends_in_one_line(folder, rows, message):
    with pytest.raises(UserError, match=message):
        opened(table(folder, rows))


@pytest.mark.parametrize("content", ["{", '{"image": 3}', "[3]"])
def test_json_of_another_form_ends_in_one_line(folder, content):
    (folder / "list.json").write_text(content)
    with pytest.raises(UserError, match="list.json: (not JSON|must be a list of objects)"):
        opened(folder / "list.json")


def test_a_table_that_is_not_there_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match="list.csv: .*give a CSV or JSON file that lists the images"):
        opened(tmp_path / "list.csv")
