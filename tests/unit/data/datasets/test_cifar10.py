"""CIFAR-10, as pickles and binary."""

import io
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.unit.data.pictures import assert_sound, noise, pixels_of
from wshare.data.datasets import cifar10
from wshare.data.registry import open_dataset
from wshare.errors import FormatError, UserError


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes as Python 2 did, in whose pickles CIFAR-10 is published."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        content = value if isinstance(value, bytes) else value.encode("ascii")
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)

    dispatch[bytes] = dispatch[str] = save_text


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_batches() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [6, 2, 3, 32, 32] and labels [6, 2] of the six files, the test batch last."""
    return noise(6, 2, 3, 32, 32), np.arange(12).reshape(6, 2) % 10


def write_cifar(folder: Path, form: str) -> None:
    folder.mkdir()
    for name, pixels, labels in zip(cifar10.CIFAR10_BATCHES, *cifar_batches(), strict=True):
        rows = pixels.reshape(2, 3072)
        if form == "binary":
            records = np.hstack([labels[:, np.newaxis].astype(np.uint8), rows])
            (folder / f"{name}.bin").write_bytes(records.tobytes())
            continue
        rows = np.asfortranarray(rows) if form == "fortran order" else rows
        batch = {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": rows}
        content = pickle.dumps(batch, protocol=4) if form == "python 3" else python2_pickle(batch)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", ["binary", "python 2", "python 3", "fortran order"])
@pytest.mark.parametrize("below", [True, False])
def test_cifar10_is_train_then_test(tmp_path, form, below):
    folder = tmp_path / ("cifar-10-batches-bin" if form == "binary" else "cifar-10-batches-py")
    write_cifar(folder, form)
    dataset = open_dataset({"source": "cifar10", "path": str(tmp_path if below else folder)})
    assert_sound(dataset)
    pixels, labels = cifar_batches()
    np.testing.assert_array_equal(pixels_of(dataset), pixels.reshape(12, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(dataset.labels, labels.ravel())
    assert dataset.classes == 10


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_cifar10_pickle_does_not_execute(tmp_path):
    write_cifar(tmp_path / "data", "python 3")
    mark = tmp_path / "executed"
    content = pickle.dumps({b"labels": [1, 2], b"data": Attack(mark)}, protocol=2)
    pickle.loads(content)
    assert mark.exists(), "the attack works on an ordinary reader"
    mark.unlink()
    (tmp_path / "data" / "data_batch_3").write_bytes(content)
    with pytest.raises(FormatError, match="data_batch_3: .*refused"):
        open_dataset({"source": "cifar10", "path": str(tmp_path / "data")})
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [1, 2], b"data": noise(2, 3071)}, protocol=4),
        pickle.dumps({b"labels": [1, 2], b"data": noise(2, 3072).astype("f4")}, protocol=4),
        pickle.dumps({b"labels": [1], b"data": noise(2, 3072)}, protocol=4),
        pickle.dumps({b"labels": [0.5, 1.0], b"data": noise(2, 3072)}, protocol=4),
        pickle.dumps({b"labels": [1, 2], b"data": np.dtype("u1")}, protocol=4),
    ],
)
def test_damaged_cifar10_pickle_is_named(tmp_path, content):
    write_cifar(tmp_path / "data", "python 2")
    (tmp_path / "data" / "test_batch").write_bytes(content)
    with pytest.raises(FormatError, match="test_batch: not a CIFAR-10 batch"):
        open_dataset({"source": "cifar10", "path": str(tmp_path / "data")})


def test_cifar10_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match="no CIFAR-10 here"):
        open_dataset({"source": "cifar10", "path": str(tmp_path)})
    write_cifar(tmp_path / "data", "binary")
    path = tmp_path / "data" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="data_batch_2.bin: 6145 bytes"):
        open_dataset({"source": "cifar10", "path": str(tmp_path / "data")})
    path.unlink()
    with pytest.raises(UserError, match="data_batch_2.bin: No such file"):
        open_dataset({"source": "cifar10", "path": str(tmp_path / "data")})


def test_label_beyond_the_classes_is_refused(tmp_path):
    write_cifar(tmp_path / "data", "binary")
    path = tmp_path / "data" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(UserError, match="labels from 0 to 10; .* 0 to 9"):
        open_dataset({"source": "cifar10", "path": str(tmp_path / "data")})
