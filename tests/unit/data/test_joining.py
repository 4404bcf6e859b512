"""Images to search with and images to hold out from two collections."""

import numpy as np
import pytest

from tests.unit.data.datasets.test_folders import write_folders
from tests.unit.data.pictures import assert_sound, noise, one_line, save
from wshare.data.dataset import Dataset
from wshare.data.joining import joined
from wshare.data.registry import open_dataset
from wshare.errors import UserError
from wshare.files.sealed import write_json
from wshare.stages.prepare_images import prepare_images

PREPROCESSING = {"channels": 3, "resize": None, "crop": 4, "interpolation": "bilinear", "mean": [0] * 3, "std": [1] * 3}


def settings(root, **more) -> dict:
    """Settings of a dataset with train/ and val/, complete."""
    return {
        "source": "imagefolder",
        "path": str(root / "train"),
        "class_map": "sorted",
        "held_out": {"path": str(root / "val")},
        "enlarge": True,
        "on_bad_image": "stop",
        "labels": True,
        "split": {"search": "all", "held_out": "all"},
        "seed": 0,
    } | more


def collection(labels=(0, 1, 1, 0), **more) -> Dataset:
    labels = None if labels is None else np.asarray(labels)
    return Dataset(labels, ("a", "b", "c", "d"), lambda i: i, **{"classes": 2} | more)


def test_a_class_that_one_folder_lacks_keeps_the_index_of_its_name(tmp_path):
    write_folders(tmp_path / "train", "bird", "cat", "dog")
    write_folders(tmp_path / "val", "ant", "cat", "dog")
    dataset = open_dataset(settings(tmp_path))
    assert_labels = {"ant": 0, "bird": 1, "cat": 2, "dog": 3}
    assert dataset.folders == tuple(assert_labels)
    assert (dataset.classes, dataset.apart) == (4, True)
    names = [key.split("/")[0] for key in dataset.keys]
    assert dataset.labels.tolist() == [assert_labels[name] for name in names]
    assert {name: sorted(names[i] for i in chosen)[::2] for name, chosen in dataset.splits.items()} == {
        "search": ["bird", "cat", "dog"],
        "held_out": ["ant", "cat", "dog"],
    }
    first, second = (open_dataset(settings(tmp_path, held_out=None, path=str(tmp_path / x))) for x in ("train", "val"))
    for place in range(6):
        assert dataset.read(place).tobytes() == first.read(place).tobytes()
        assert dataset.read(6 + place).tobytes() == second.read(place).tobytes()
    assert dataset.labels.dtype == np.int64


def test_held_out_images_may_come_from_another_source(tmp_path):
    write_folders(tmp_path / "train", "a", "b")
    save(tmp_path / "others" / "x.png", noise(4, 4, 3, seed=50))
    (tmp_path / "others" / "list.csv").write_text("image,label\nx.png,b\n")
    own = {"source": "table", "path": str(tmp_path / "others" / "list.csv")}
    dataset = open_dataset(settings(tmp_path, held_out=own, split={"search": 0.5, "held_out": "all"}))
    assert dataset.splits["held_out"].tolist() == [4]
    assert dataset.labels[4] == 1
    assert len(dataset.splits["search"]) == 2
    assert_sound(dataset)


def test_training_and_search_images_are_those_that_are_dealt_without_held_out_ones():
    search, held_out = collection(), collection()
    sizes = {"train": 2, "search": 1, "held_out": 3}
    found = joined(search, held_out, sizes, 3).splits
    alone = joined(search, held_out, sizes | {"held_out": 1}, 3).splits
    assert joined(search, held_out, sizes, 3).apart
    assert {name: len(chosen) for name, chosen in found.items()} == sizes
    for name in ("train", "search"):
        assert found[name].tolist() == alone[name].tolist()
        assert found[name].max() < 4 <= found["held_out"].min()


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({}, {"labels": None}, "held_out: give labels with both"),
        ({"folders": ("a", "b")}, {}, "held_out: classes by name and classes by index; give a class_map"),
        ({}, {"classes": 9}, "held_out: images of 9 classes, but the search images are of 2"),
        ({}, {"labels": np.zeros((4, 3), np.int64)}, r"labels are int64 \[3\] an image, but .* int64 \[\]"),
    ],
)
def test_labels_that_do_not_mean_the_same_end_in_one_line(first, second, told):
    with pytest.raises(UserError, match=told) as error:
        joined(collection(**first), collection(**second), {"search": 2, "held_out": 2}, 0)
    one_line(error)


def test_sets_of_labels_of_both_have_the_same_columns():
    def of(*sets, **more) -> Dataset:
        return collection(np.array(sets), classes=None, **more)

    sizes = {"search": "all", "held_out": "all"}
    named = joined(of(*[[1, 0]] * 4, folders=("a", "c")), of(*[[1, 1]] * 4, folders=("b", "c")), sizes, 0)
    assert named.labels.tolist() == [[1, 0, 0]] * 4 + [[0, 1, 1]] * 4
    assert (named.folders, named.classes) == (("a", "b", "c"), None)
    widened = joined(of(*[[1]] * 4, sparse=True), of(*[[0, 1]] * 4, sparse=True), sizes, 0)
    assert widened.labels.tolist() == [[1, 0]] * 4 + [[0, 1]] * 4


@pytest.mark.parametrize("labels", [True, False])
def test_an_image_of_both_folders_stops(tmp_path, labels):
    write_folders(tmp_path / "train", "a", "b")
    write_folders(tmp_path / "val", "c", "a")
    write_json(tmp_path / "model.json", {"preprocessing": PREPROCESSING, "classes": None})
    given = settings(tmp_path, labels=labels, class_map="sorted" if labels else None)
    with pytest.raises(UserError) as error:
        prepare_images(given, tmp_path / "model.json", tmp_path / "search.h5", tmp_path / "held_out.h5")
    assert "4 images of split 'held_out' are in split 'search' too" in one_line(error)
