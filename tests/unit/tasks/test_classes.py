"""Names of classes."""

import pytest

from wshare.tasks.classes import class_names, named

PREDICTIONS_IN_FOLDERS = [
    {"image": "cat/deep/1.jpg", "label": "4", "float32": "4", "compressed": "7"},
    {"image": "dog/2.jpg", "label": "7", "float32": "7", "compressed": "9"},
]


@pytest.mark.parametrize(
    ("categories", "source", "predictions", "expected"),
    [
        (["a", "b"], "fashion_mnist", PREDICTIONS_IN_FOLDERS, {"0": "a", "1": "b"}),
        (None, "imagefolder", PREDICTIONS_IN_FOLDERS, {"4": "cat", "7": "dog"}),
        (None, None, PREDICTIONS_IN_FOLDERS, {"4": "cat", "7": "dog"}),
        # Crops of a photograph have a path but no label, images of arrays neither name nor path.
        (None, "photos", [{"image": "cat.png/3", "label": "", "float32": "1", "compressed": "2"}], {}),
        (None, "mnist", [{"image": "17", "label": "3", "float32": "3", "compressed": "5"}], {}),
    ],
)
def test_class_names(categories, source, predictions, expected):
    assert class_names(categories, source, predictions) == expected


@pytest.mark.parametrize(("source", "label", "name"), [("fashion_mnist", 9, "Ankle boot"), ("cifar10", 3, "cat")])
def test_class_names_of_a_source(source, label, name):
    names = class_names(None, source, [])
    assert len(names) == 10
    assert named(str(label), names) == f"{name} ({label})"
    assert named("10", names) == "10"
