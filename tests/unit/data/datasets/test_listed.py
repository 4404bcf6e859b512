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


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("a;c", "", "b"), [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        (("a|c", "|", " b "), [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        (("traffic light;car", "", "two words"), [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
        (("0 2", "", "1"), [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        ((" 0  2", "", "1;0"), None),
    ],
)
def test_what_stands_between_several_classes(folder, texts, expected):
    path = table(folder, [("image", "labels"), *zip(NAMES, texts, strict=True)])
    if expected is None:
        with pytest.raises(UserError, match=r"as indices \(1\) and as names \('0  2'\)"):
            opened(path)
    else:
        found = opened(path)
        assert found.labels.tolist() == expected
        assert found.sparse == (found.folders is None)


def test_one_column_a_label_in_the_order_that_is_given(folder):
    rows = [("image", "dog", "fold", "cat", "x"), (NAMES[0], "1", "3", "0", "2.5"), (NAMES[1], "0", "3", "1.0", "-1e2")]
    path = table(folder, rows)
    found = opened(path, labels=["cat", "dog"])
    assert found.labels.tolist() == [[0, 1], [1, 0]]
    assert (found.labels.dtype, found.classes, found.folders, found.sparse) == (np.int64, 2, None, False)
    numbers = opened(path, labels=["x", "dog"]).labels
    assert (numbers.dtype, numbers.tolist()) == (np.float32, [[2.5, 1.0], [-100.0, 0.0]])
    with pytest.raises(UserError, match=r"list.csv: has no column 'cats'. Did you mean 'cat'\?"):
        opened(path, labels=["cats"])
    rows[1] = (NAMES[0], "1", "3", "", "nan")
    for column, value in (("cat", "''"), ("x", "'nan'")):
        with pytest.raises(UserError, match=f"row 1 has {value} in column '{column}'; give a number"):
            opened(table(folder, rows), labels=[column])


def test_a_class_map_gives_the_index_of_a_name(folder):
    (folder / "map.json").write_text('{"cat": 281, "dog": 207}')
    one = table(folder, [("image", "label"), (NAMES[0], "dog"), (NAMES[1], "cat")])
    found = opened(one, class_map=str(folder / "map.json"))
    assert (found.labels.tolist(), found.folders) == ([207, 281], None)
    several = table(folder, [("image", "labels"), (NAMES[0], "dog;cat"), (NAMES[1], "")])
    found = opened(several, class_map=str(folder / "map.json")).labels
    assert (found.shape, np.flatnonzero(found[0]).tolist(), found[1].any()) == ((2, 282), [207, 281], False)
    with pytest.raises(UserError, match="map.json: no index for 'bird' of .*list.csv; add 'bird' to the map"):
        opened(table(folder, [("image", "label"), (NAMES[0], "bird")]), class_map=str(folder / "map.json"))
    with pytest.raises(UserError, match="has no column label, labels, mask for the class_map; add one"):
        opened(table(folder, [("image", "Label"), (NAMES[0], "bird")]), class_map=str(folder / "map.json"))


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
        (
            [("image", "labels"), (NAMES[0], "traffic light")],
            "may be one name or several; put semicolons between names",
        ),
        ([("image", "mask"), (NAMES[0], "gone.png")], "1 of 1 masks are not there, such as .*gone.png"),
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
