"""A collection of images, read one by one."""

import numpy as np
import PIL.Image
import pytest

from tests.unit.data.pictures import TENCH, save
from wshare.data.dataset import as_rgb
from wshare.data.registry import open_dataset


def test_16_bit_grey_is_scaled(tmp_path):
    values = np.array([[0, 128, 129, 257, 300, 32768, 65535]], np.uint16)
    save(tmp_path / TENCH / "a.png", values)
    (tmp_path / TENCH / "b.ppm").write_bytes(b"P5 7 1 65535\n" + values.astype(">u2").tobytes())
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path)})
    for index in range(2):
        image = np.asarray(dataset.read(index))
        np.testing.assert_array_equal(image[..., 0], [[0, 0, 1, 1, 1, 128, 255]])
        assert (image == image[..., :1]).all()


def test_grey_of_undefined_range_is_refused():
    with pytest.raises(ValueError, match="-1 to 5"):
        as_rgb(PIL.Image.fromarray(np.array([[5, -1]], np.int32)))
    with pytest.raises(ValueError, match="floating-point"):
        as_rgb(PIL.Image.new("F", (2, 2)))
