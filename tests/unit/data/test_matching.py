"""Classes of a collection and classes of a network."""

import numpy as np
import pytest

from wshare.data.dataset import Dataset
from wshare.data.matching import matched
from wshare.errors import UserError

NAMES = ["tench", "great white shark", "Crane", "crane", "sea lion"]


def dataset(*folders: str, classes: int | None = None) -> Dataset:
    labels = np.arange(len(folders) or 3).repeat(2)
    count = len(folders) if folders else classes
    return Dataset(labels, tuple(map(str, range(len(labels)))), lambda i: None, count, folders=folders or None)


def labels_of(images: Dataset, **description: object) -> list[int]:
    return matched(images, {"classes": 5, "categories": NAMES} | description, "images").labels.tolist()


def error(images: Dataset, **description: object) -> str:
    with pytest.raises(UserError) as raised:
        labels_of(images, **description)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_folders_are_matched_by_name_in_whatever_spelling():
    assert labels_of(dataset("Great_White-Shark", "sea lion", "tench")) == [1, 1, 4, 4, 0, 0]


def test_a_name_that_two_classes_have_tells_neither():
    assert "1 of 2 folders are named like classes of the network, but not 'crane'" in error(dataset("crane", "tench"))


def test_names_of_other_languages_go_by_their_place_if_there_are_as_many():
    assert labels_of(dataset("a", "b", "c", "d", "e")) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert labels_of(dataset("tench", "x"), classes=2, categories=None) == [0, 0, 1, 1]


def test_other_numbers_of_classes_are_refused():
    assert "2 class folders, but the network has 5 classes, " in error(dataset("a", "b"))
    assert "2 class folders, but the network has 5 classes, " in error(dataset("tench", "x"), categories=None)
    assert "images of 1000 classes, but the network has 5, " in error(dataset(classes=1000))


def test_sets_of_labels_are_matched_by_name_or_widened_to_the_networks():
    def sets(labels: list[list[int]], **more: object) -> Dataset:
        return Dataset(np.array(labels), ("0", "1"), lambda i: None, None, **more)

    def found(images: Dataset, **more: object) -> list[list[int]]:
        return labels_of(images, task="multilabel", labels=5, classes=None, **more)

    assert found(sets([[1, 0], [1, 1]], folders=("sea-lion", "tench"))) == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 1]]
    assert found(sets([[1, 0, 1], [0, 1, 0]], sparse=True)) == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    # Columns that are not listed by their index are as many as they are.
    assert found(sets([[1, 0], [1, 1]])) == [[1, 0], [1, 1]]
    assert found(sets([[1, 0], [1, 1]], folders=("a", "b"))) == [[1, 0], [1, 1]]


def test_what_tells_no_number_is_left_as_it_is():
    for images, description in (
        (dataset(), {"classes": 5}),
        (dataset(classes=5), {"classes": 5}),
        (dataset("a", "b"), {}),
        (Dataset(None, ("0",), lambda i: None, 7), {"classes": 5}),
    ):
        assert matched(images, description, "images") is images
