"""Images that a function of the user returns."""

import numpy as np
import PIL.Image
import pytest

from tests.unit.data.pictures import assert_sound, noise, one_line, pixels_of
from wshare.data.dataset import Dataset
from wshare.data.images import ImageFile
from wshare.data.prepare import prepared
from wshare.data.registry import open_dataset
from wshare.data.stored import write_images
from wshare.errors import UserError
from wshare.models.preprocessing import complete_preprocessing


def arrays():
    return noise(3, 5, 4, 3), [2, 0, 1]


def grey_arrays():
    return noise(2, 5, 4), np.array([7, 0], np.uint8)


def pictures():
    wide = PIL.Image.fromarray(np.array([[65535]], np.uint16))
    return [PIL.Image.fromarray(noise(5, 4)), PIL.Image.new("CMYK", (2, 3)), wide, "no image"], (4, 5, 6, 7)


def wrong_images():
    return noise(3, 5, 4).astype(int), [0, 1, 2]


def spectrograms():
    return noise(3, 2, 5, 4) / 7, np.eye(3)


def too_few_labels():
    return noise(3, 5, 4), [0, 1]


def text_labels():
    return noise(2, 5, 4), ["a", "b"]


def not_finite():
    return np.full((2, 1, 3), np.nan), None


def negative_label():
    return noise(2, 5, 4), [0, -1]


def without_labels():
    return noise(3, 5, 4), None


def no_image():
    return [], []


def one_value():
    return 5


def a_generator():
    return (image for image in noise(2, 5, 4)), [0, 1]


def failing():
    raise OSError("the disk\nis gone")


def from_function(function: str | None) -> Dataset:
    return open_dataset({"source": "python", "path": None, "class_map": None, "function": function})


@pytest.mark.parametrize("function", [arrays, grey_arrays])
def test_function_that_returns_arrays(function):
    dataset = from_function(f"{__name__}:{function.__name__}")
    assert_sound(dataset)
    images, labels = function()
    np.testing.assert_array_equal(pixels_of(dataset), images)
    assert dataset.labels.tolist() == list(labels)
    assert dataset.classes is None


def test_function_that_returns_pictures():
    dataset = from_function(f"{__name__}:pictures")
    assert_sound(dataset)
    assert [dataset.read(index).mode for index in range(3)] == ["L", "RGB", "RGB"]
    np.testing.assert_array_equal(np.asarray(dataset.read(0)), noise(5, 4))
    assert dataset.read(2).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UserError, match="image 3 is str"):
        dataset.read(3)


def test_arrays_are_taken_as_they_are_with_labels_of_any_shape(tmp_path):
    dataset = from_function(f"{__name__}:spectrograms")
    assert np.array_equal(dataset.labels, np.eye(3))
    assert dataset.labels.dtype == np.float32
    settings = complete_preprocessing({"channels": 2, "crop": [5, 4]})
    images = list(prepared(dataset, range(3), settings, True))
    write_images(tmp_path / "images.h5", images, dataset.labels, list(dataset.keys), settings, {})
    file = ImageFile(tmp_path / "images.h5")
    assert np.array_equal(file.batch(0).numpy(), (noise(3, 2, 5, 4) / 7).astype(np.float32))
    assert np.array_equal(file.labels, np.eye(3))
    with pytest.raises(UserError, match=r"an array of the dataset is \[2, 5, 4\], but the network takes \[2, 20\]"):
        next(prepared(dataset, range(3), complete_preprocessing({"channels": 2, "crop": [20]}), True))
    pictures = from_function(f"{__name__}:arrays")
    with pytest.raises(UserError, match="the network takes 2 channels of 5, which no picture is; give arrays"):
        next(prepared(pictures, range(3), complete_preprocessing({"channels": 2, "crop": 5}), True))


def test_function_that_returns_no_labels():
    dataset = from_function(f"{__name__}:without_labels")
    assert dataset.labels is None
    assert dataset.keys == ("0", "1", "2")
    np.testing.assert_array_equal(pixels_of(dataset), noise(3, 5, 4))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (None, "'function' is ''; set it to module:function"),
        ("no_colon", "set it to module:function"),
        ("no.such.module:f", "No module named 'no'; put its folder on PYTHONPATH"),
        (f"{__name__}:absent", "has no attribute 'absent'"),
        (f"{__name__}:wrong_images", "images are int64"),
        (f"{__name__}:not_finite", "images hold NaN or infinite values"),
        (f"{__name__}:too_few_labels", r"3 images, but labels are int64 \[2\]; give one an image"),
        (f"{__name__}:text_labels", "labels are <U1"),
        (f"{__name__}:negative_label", "labels from -1 to 0"),
        (f"{__name__}:no_image", "holds no image"),
        (f"{__name__}:one_value", r"must return \(images, labels\)"),
        (f"{__name__}:a_generator", r"has no len\(\); it must return"),
        (f"{__name__}:failing", "OSError: the disk is gone"),
    ],
)
def test_bad_function_is_named(function, message):
    with pytest.raises(UserError, match=message) as error:
        from_function(function)
    one_line(error)
