"""Images as people have them in PyTorch: tensors, arrays, loaders, datasets, pictures; all read once, in order."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from wshare.errors import UserError
from wshare.progress import PROGRESS

# Images as a user gives them: [N, ...], batches of them, or a dataset; with labels or without.
Batches = Tensor | np.ndarray | Iterable[object] | Dataset
# Bytes of images that are kept in memory; more go to a temporary file, which is read batch by batch.
IN_MEMORY = 2 << 30
# Images after which a loader that does not say its length is taken for one without end.
MOST_IMAGES = 100_000
LABEL_KEYS = ("labels", "label", "targets", "target")


def gathered(
    images: Batches,
    labels: Sequence | None,
    where: str,
    device: torch.device,
    take: str | Callable | None = None,
    preprocess: Callable | None = None,
) -> tuple[Tensor | list[Tensor], np.ndarray | None]:
    """All images, float32 [N, ...] on the CPU, or a list of [...] where sizes differ; and labels [N, ...] or None.

    An item of a dataset and a batch of anything else is images; (images, labels); or a mapping or another object, of
    which `take` is the key of the images, or a function that gives images, or both. Pictures of PIL go through
    `preprocess`, one by one. More than IN_MEMORY bytes lie in a temporary file, not in memory. UserError names `where`.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        return _checked(images, where, device), _labels(labels, len(images), where)
    collected, known = _Collected(where), []
    with tqdm(desc=where, unit="image", **PROGRESS) as bar:
        for batch in _batches(images, where):
            pixels, given = _parts(batch, where, take)
            pixels = _checked(_tensor(pixels, where, preprocess), where, device)
            collected.add(pixels)
            known += [] if given is None else [torch.as_tensor(np.asarray(given))]
            bar.update(len(pixels))
            if len(collected) > MOST_IMAGES and not hasattr(images, "__len__"):
                raise UserError(
                    f"{where}: gave {len(collected):,} images and goes on; give a loader that ends, such as "
                    "itertools.islice(loader, 100)"
                )
    if not len(collected):
        raise UserError(f"{where}: no image")
    if known and labels is not None:
        raise UserError(f"{where}: batches bring labels, and labels are given too; leave one out")
    if known and len(known) != collected.batches:
        raise UserError(f"{where}: some batches bring labels and some do not")
    if len({tuple(part.shape[1:]) for part in known}) > 1:
        raise UserError(f"{where}: labels of different shapes; give labels of one shape, or leave them out")
    return collected.images(), _labels(torch.cat(known) if known else labels, len(collected), where)


class _Collected:
    """Images that come batch by batch: in memory, or in a temporary file once they are many."""

    def __init__(self, where: str):
        self._where, self._parts, self._count, self.batches = where, [], 0, 0
        self._shapes: list[tuple[int, ...]] = []
        self._values = 0
        self._file = None

    def __len__(self) -> int:
        return self._count

    def add(self, images: Tensor) -> None:
        """One batch more; UserError if its images differ from others in more than their sizes."""
        shape = tuple(images.shape[1:])
        first = (self._shapes or [shape])[0]
        if (len(shape), shape[0]) != (len(first), first[0]):
            raise UserError(f"{self._where}: images {list(first)} and {list(shape)}; give them the same channels")
        self._count += len(images)
        self._values += images.numel()
        self._shapes += [shape] * len(images)
        self.batches += 1
        self._parts.append(images)
        if self._file is not None or self._values * images.itemsize > IN_MEMORY:
            # It is gone once nothing reads it.
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115
            for part in self._parts:
                self._write(part.numpy().tobytes())
            self._parts = []

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise UserError(
                f"{self._where}: {self._count:,} images do not fit into the folder of temporary files "
                f"({error.strerror}); give fewer, or set TMPDIR to a larger one"
            ) from None

    def images(self) -> Tensor | list[Tensor]:
        """All images, [N, ...], or a list of [...] where sizes differ."""
        one_shape = len(set(self._shapes)) == 1
        if self._file is None:
            return torch.cat(self._parts) if one_shape else [image for part in self._parts for image in part]
        self._file.flush()
        values = torch.from_numpy(np.memmap(self._file, np.float32, "r+", shape=(self._values,)))
        if one_shape:
            return values.view(self._count, *self._shapes[0])
        parts = values.split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _batches(images: Batches, where: str) -> Iterator[object]:
    """Batches of anything that gives them; of a dataset its items, each as a batch of one."""
    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and isinstance(images, Dataset):
        yield from (_Item(images[index]) for index in range(len(images)))
        return
    if _are_images(images):
        yield from map(_Item, images)
        return
    try:
        batches = iter(images)
    except TypeError:
        raise UserError(
            f"{where}: a {type(images).__name__}; give a tensor [N, C, H, W], batches of them, or a dataset"
        ) from None
    first = next(batches, None)
    if first is not None:
        rest = chain([first], batches)
        # A list of pictures is a list of items.
        yield from map(_Item, rest) if isinstance(first, PIL.Image.Image) else rest


def _are_images(images: object) -> bool:
    """Whether a list holds images [C, H, W] of different heights; batches [N, C, T] all have the same channels."""
    arrays = isinstance(images, list | tuple) and all(
        isinstance(x, Tensor | np.ndarray) and x.ndim == 3 for x in images
    )
    return arrays and len({image.shape[1] for image in images}) > 1


class _Item:
    """An item of a dataset, in place of a batch."""

    def __init__(self, content: object):
        self.content = content


def _parts(batch: object, where: str, take: str | Callable | None) -> tuple[object, object]:
    """Images and labels, or None, of a batch, or of an item as a batch of one."""
    if isinstance(batch, _Item):
        images, label = _parts(batch.content, where, take)
        return [images], None if label is None else np.asarray(label)[np.newaxis]
    if callable(take):
        batch = take(batch)
    elif take is not None:
        batch = _entry(batch, where, take)
    if isinstance(batch, Tensor | np.ndarray | PIL.Image.Image) or _pictures(batch):
        return batch, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        return (*batch, None)[:2]
    if isinstance(batch, Mapping):
        raise UserError(
            f"{where}: a batch is a mapping of {', '.join(map(repr, batch))}; set input= to the images' key"
        )
    raise UserError(f"{where}: a batch is images, or (images, labels); set input= to a function that gives one of them")


def _pictures(batch: object) -> bool:
    return isinstance(batch, tuple | list) and len(batch) > 0 and all(isinstance(x, PIL.Image.Image) for x in batch)


def _entry(batch: object, where: str, key: str) -> tuple[object, object]:
    """Images under `key` of a mapping, and labels under one of the usual names, if there are."""
    if not isinstance(batch, Mapping) or key not in batch:
        found = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise UserError(f"{where}: input={key!r}, but a batch has {found}")
    return batch[key], next((batch[name] for name in LABEL_KEYS if name in batch), None)


def _tensor(images: object, where: str, preprocess: Callable | None) -> Tensor:
    """A batch of images [N, ...], of which each may be a picture still."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        return images
    if not isinstance(images, tuple | list) or not images:
        raise UserError(f"{where}: a batch holds a {type(images).__name__} where images should be")
    if any(isinstance(image, PIL.Image.Image) for image in images):
        if preprocess is None:
            raise UserError(
                f"{where}: pictures of PIL; set preprocess= to the function that the model's images go through"
            )
        images = [preprocess(image) for image in images]
    return torch.stack([torch.as_tensor(image) for image in images])


def _checked(images: Tensor, where: str, device: torch.device) -> Tensor:
    if images.ndim < 2:
        raise UserError(f"{where}: {list(images.shape)}; give a tensor [N, C, H, W] or batches of them (a DataLoader)")
    if not images.numel():
        raise UserError(f"{where}: {list(images.shape)} holds no image")
    if not images.is_floating_point():
        raise UserError(f"{where}: {images.dtype}; give float images as the model takes them, scaled and normalised")
    if images.device not in (device, torch.device("cpu")):
        raise UserError(
            f"{where}: on {images.device}, but the model is on {device}; pass them with .to({str(device)!r})"
        )
    images = images.detach().cpu().float().contiguous()
    if not images.isfinite().all():
        raise UserError(f"{where}: holds NaN or infinite values")
    return images


def _labels(labels: Sequence | None, count: int, where: str) -> np.ndarray | None:
    """Labels as an array [N, ...], int64 of whole numbers and truth values, float32 of others."""
    if labels is None:
        return None
    found = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if not found.ndim or len(found) != count or found.dtype.kind not in "biuf":
        raise UserError(f"{where}: {count} images, but labels are {found.dtype} {list(found.shape)}; give one an image")
    return found.astype(np.float32 if found.dtype.kind == "f" else np.int64)
