"""Folders of image files, one a class or without labels; ImageNet among them."""

import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset, as_text, read_file, source_folder
from wshare.data.datasets.class_map import ClassMap
from wshare.errors import UserError, one_line
from wshare.names import closest

_log = logging.getLogger(__name__)

# Those of torchvision's ImageFolder.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# Images too, but not read here: a folder that holds some would be read in part.
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".gif", ".jxl", ".jp2", ".j2k", ".jfif", ".jpe", ".tga", ".pbm", ".pnm", ".svg"),
    *(".psd", ".exr", ".hdr", ".ico", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".dcm"),
)
# Beside names that open with a dot, folders that programs leave among images: a Mac in archives, and a Synology, with a
# smaller copy of each image.
HIDDEN = ("__MACOSX", "@eaDir")
# Folders that divide a collection, and are no classes.
TRAIN, OTHERS = ("train", "training"), ("val", "valid", "validation", "test", "testing", "eval")
IMAGENET_CLASSES = 1000
WNID = re.compile(r"n\d{8}")


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


def open_imagenet(settings: Mapping[str, Any]) -> Dataset:
    """ImageNet's validation images: a folder a wnid, or the archives, which are unpacked beside themselves."""
    root = source_folder(settings)
    if not (root / "val").is_dir() and (root / "ILSVRC2012_img_val.tar").is_file():
        try:
            _unpack_imagenet(root)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{root}: the archives could not be unpacked there ({one_line(error)}); check both and the free space"
            ) from None
    return open_imagenette(settings)


def _unpack_imagenet(root: Path) -> None:
    """Unpack the validation images into `root`/val, which is there only when it is whole."""
    # Not at the top: Unix alone has it, and only this needs it.
    import fcntl

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


def open_imagenette(settings: Mapping[str, Any]) -> Dataset:
    """Images in a folder a wnid, or in its folder `val`: ImageNet or a part of it."""
    root = source_folder(settings)
    if (root / "val").is_dir():
        root = root / "val"
    return _from_folders(root, _wnid_indices(root, _class_folders(root)), IMAGENET_CLASSES)


def open_imagefolder(settings: Mapping[str, Any]) -> Dataset:
    """Images in a folder a class, whose indices `class_map` tells, or images without `labels` at any depth."""
    root, class_map = source_folder(settings), settings.get("class_map")
    if not settings.get("labels", True):
        return _from_unlabelled_folder(root)
    folders = _class_folders(root)
    if class_map == "sorted":
        found = _from_folders(root, {name: place for place, name in enumerate(folders)}, len(folders))
        return replace(found, folders=tuple(map(as_text, folders)), apart=True)
    if class_map is not None:
        classes = ClassMap(class_map)
        indices = {name: classes.index(as_text(name), f"folder {as_text(root / name)}") for name in folders}
        return replace(_from_folders(root, indices, None), apart=True)
    if all(WNID.fullmatch(name) for name in folders):
        return replace(_from_folders(root, _wnid_indices(root, folders), IMAGENET_CLASSES), apart=True)
    unknown = next(name for name in folders if not WNID.fullmatch(name))
    raise UserError(
        f"{root / unknown}: no ImageNet wnid, so its class is unknown; set 'class_map' to a JSON file "
        "{folder: class index}, or to 'sorted' for the place in the sorted folder names"
    )


def _class_folders(root: Path) -> list[str]:
    entries = _entries(root)
    loose = [entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)]
    if loose:
        # ImageNet's validation archive unpacks like this, and so does a sorting that was cut short.
        raise UserError(
            f"{root}: {len(loose)} images lie in no class folder, among them {as_text(loose[0])}; "
            "move them to one folder a class"
        )
    lost = [entry.name for entry in entries if "." not in entry.name and not os.path.exists(entry)]
    if lost:
        # Of a class folder on a disk that is not mounted: without it, other classes would have its index.
        raise UserError(f"{as_text(root / lost[0])}: a link that leads nowhere; remove or correct it")
    folders = [entry.name for entry in entries if entry.is_dir()]
    if not folders:
        raise UserError(f"{root}: holds no class folders; 'path' must hold one folder of images a class")
    _refuse_splits(root, folders)
    return folders


def _refuse_splits(root: Path, folders: Sequence[str]) -> None:
    """UserError if the folders divide the collection into images for training and others."""
    learnt = [name for name in folders if name.lower() in TRAIN]
    kept = [name for name in folders if name.lower() in OTHERS]
    both = f", or {root / learnt[0]} with {root / kept[0]} as held_out" if learnt and kept else ""
    if (learnt and kept) or len(learnt + kept) == len(folders):
        raise UserError(
            f"{root}: holds {', '.join(learnt + kept)}, which are splits and no classes; give "
            f"{root / (kept or learnt)[0]}, which must hold one folder of images a class{both}"
        )


def _wnid_indices(root: Path, folders: Sequence[str]) -> dict[str, int]:
    indices = {wnid: index for index, wnid in enumerate(imagenet_wnids())}
    for name in folders:
        if name not in indices:
            raise UserError(
                f"{root / name}: not one of ImageNet's {IMAGENET_CLASSES} wnids. {closest(name, indices)} "
                "Remove the folder, or use the source 'imagefolder' with a class_map"
            )
    return {name: indices[name] for name in folders}


def _from_folders(root: Path, indices: Mapping[str, int], classes: int | None) -> Dataset:
    found = []
    for name, index in indices.items():
        found += [(path, index) for path in _images_below(root, root / name)]
    if not found:
        raise UserError(f"{root}: its class folders hold no image{_known(root)}")
    empty = sorted(indices.keys() - {path.split("/")[0] for path, _ in found})
    if empty:
        lost = root / empty[0]
        raise UserError(f"{lost}: class folder without images; remove it, or put its images there{_known(lost)}")
    _tell_others(root)
    found.sort()
    paths = tuple(path for path, _ in found)
    labels = np.array([index for _, index in found], dtype=np.int64)
    return Dataset(labels, tuple(map(as_text, paths)), partial(read_file, root, paths), classes)


def _from_unlabelled_folder(root: Path) -> Dataset:
    paths = tuple(sorted(_images_below(root, root)))
    if not paths:
        raise UserError(f"{root}: holds no image{_known(root)}")
    _tell_others(root)
    return Dataset(None, tuple(map(as_text, paths)), partial(read_file, root, paths), classes=None, apart=True)


def _known(start: Path) -> str:
    """What an error adds where no image was found: the suffixes that are read, and images of others that are there."""
    others = sorted(_images_below(start, start, OTHER_SUFFIXES))
    known = f"; known are {', '.join(IMAGE_SUFFIXES)}"
    if not others:
        return known
    return f"{known}; {len(others)} images of other types are there, such as {as_text(others[0])}: convert them"


def _tell_others(root: Path) -> None:
    others = sorted(_images_below(root, root, OTHER_SUFFIXES))
    if others:
        _log.warning(
            "%s: %d images are of types that are not read and are left out, such as %s; convert them, to PNG say",
            *(root, len(others), as_text(others[0])),
        )


def _images_below(root: Path, start: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Paths below `root` of the images at any depth of `start`, through links too."""
    above = () if start == root else (os.path.realpath(root),)
    found = _files_below(start, above)
    yield from (path.relative_to(root).as_posix() for path in found if _is_image(path.name, suffixes))


def _files_below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    # A link to a folder that it lies in would have no end.
    if real in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _files_below(folder / entry.name, (*above, real))
        else:
            yield folder / entry.name


def _entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, by name, without hidden files and folders."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".") and entry.name not in HIDDEN]
    except OSError as error:
        # A class would lose its images.
        raise UserError(f"{as_text(folder)}: {error.strerror}; make the folder readable") from None
    return sorted(entries, key=lambda entry: entry.name)


def _is_image(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> bool:
    return name.lower().endswith(suffixes)
