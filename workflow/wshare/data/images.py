"""Images, in batches: decoded in an HDF5 file, and read lazily, or in memory."""

import copy
import hashlib
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from wshare.data.stored import KIND, image_hash, preprocessing_hash, starts_of, stored_labels
from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.files.hdf5 import get_text, open_h5, read_arrays

_log = logging.getLogger(__name__)

# Images of a batch, at least and at most, and the values that it aims at: activations of a batch should stay
# in the cache, and small images should not drown in calls.
BATCH_RANGE = (4, 64)
BATCH_VALUES = 1 << 19
# The same on a GPU, which is busy from 128 images of 224 x 224 on (measured on an H200).
GPU_BATCH_RANGE = (1, 1024)
GPU_BATCH_VALUES = 128 * 3 * 224 * 224


def batch_size(shape: Sequence[int], bounds: tuple[int, int] = BATCH_RANGE, values: int = BATCH_VALUES) -> int:
    """Images of a batch; it follows from their shape alone: a float sum depends on it, and must not on the machine."""
    least, most = bounds
    return min(most, max(least, values // int(np.prod(shape))))


def normalised(pixels: np.ndarray | torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixels as a network takes them: float32 [N, C, H, W], of uint8; mean and std a channel, on the [0, 1] scale."""
    pixels = torch.as_tensor(pixels)
    centre, scale = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, -1, 1, 1) for values in (mean, std)
    )
    return (pixels.float() / 255 - centre) / scale


class Images:
    """Images of one split, read batch by batch, from a file, from memory or from a GPU.

    Attributes: `labels` int64 [N], None where there are none, `keys`, a name for each image, `fingerprint`
    (hexadecimal SHA-256), `shape` [C, H, W], that of the first image where sizes differ, `batch_size`, then 1.
    """

    keys: tuple[str, ...]
    labels: np.ndarray | None
    fingerprint: str
    shape: tuple[int, ...]
    batch_size: int
    _first: int

    def stored(self, first: int, stop: int) -> torch.Tensor:
        """Images from `first` up to `stop` as they are kept: [stop - first, C, H, W]."""
        raise NotImplementedError

    def prepared(self, stored: torch.Tensor) -> torch.Tensor:
        """The same as a network takes them: float32, on the same device."""
        raise NotImplementedError

    def batch(self, start: int) -> torch.Tensor:
        """Images from `start` on as a network takes them: float32 [at most batch_size, C, H, W]."""
        return self.prepared(self.stored(start, min(start + self.batch_size, len(self))))

    def part(self, first: int, stop: int) -> "Images":
        """Images from `first` up to `stop`; batches are those of the whole if `first` is a multiple of their size."""
        view = copy.copy(self)
        view._first = self._first + first
        view.keys = self.keys[first:stop]
        view.labels = None if self.labels is None else self.labels[first:stop]
        return view

    def hashes(self) -> Iterator[bytes]:
        """`image_hash` of each image, in order."""
        return (image_hash(self.stored(place, place + 1)[0].numpy()) for place in range(len(self)))

    def __len__(self) -> int:
        return len(self.keys)

    def middle(self) -> int:
        """Where to cut the images into two halves of about one size, between batches if there are several."""
        half = len(self) // 2
        return half // self.batch_size * self.batch_size or half

    def starts(self) -> range:
        """First image of each batch."""
        return range(0, len(self), self.batch_size)

    def batches(self) -> Iterator[torch.Tensor]:
        """All batches in order."""
        return map(self.batch, self.starts())


class ImageFile(Images):
    """Images of one split, read batch by batch.

    Attributes: `labels` int64 [N], None where the dataset has none, `fingerprint` (hexadecimal SHA-256), `shape`
    [C, H, W], `batch_size`, `skipped`, the number of images of the split that were left out as unreadable, `held_out`,
    the number of those that the dataset holds out. `limit` keeps the first images only; they are in random order in the
    file, so this is a random sample. FormatError if the file is not whole, or was made with another `preprocessing`, if
    one is given; each image is compared with its checksum when it is read.
    """

    def __init__(self, path: str | Path, limit: int | None = None, preprocessing: dict | None = None):
        self.path = Path(path)
        with open_h5(path, KIND, preprocessing and {"preprocessing": preprocessing_hash(preprocessing)}) as file:
            # Both must say the same: labels that are lost must not pass for labels that never were.
            if get_text(file.attrs, "labels") != ("given" if "labels" in file else "none"):
                raise FormatError(f"{path}: damaged (its labels are not as it says); {remedy(path)}")
            names = ("keys", "checksums", *(name for name in ("labels", "shapes") if name in file))
            found = dict(zip(names, (array[:limit] for array in read_arrays(file, *names)), strict=True))
            self.labels, self._checksums = found.get("labels"), found["checksums"]
            self.keys = tuple(key.decode() for key in found["keys"])
            self.fingerprint = get_text(file.attrs, "fingerprint")
            self._shapes = found.get("shapes")
            self.shape = file["images"].shape[1:] if self._shapes is None else tuple(self._shapes[0].tolist())
            self.skipped, self.held_out = map(int, file.attrs["skipped_and_held_out"])
            self._mean, self._std = file.attrs["mean"], file.attrs["std"]
        one_shape = self._shapes is None or (self._shapes == self._shapes[0]).all()
        self.batch_size = batch_size(self.shape) if one_shape else 1
        self._starts = None if self._shapes is None else starts_of(self._shapes)
        self._first = 0
        # Stays open: a pass over the images has many batches.
        self._images = h5py.File(path, "r")["images"]

    def stored(self, first: int, stop: int) -> torch.Tensor:
        """Pixels, uint8 [stop - first, C, H, W], or arrays, float32."""
        place = slice(self._first + first, self._first + stop)
        try:
            pixels = self._read(place)
        except OSError as error:
            raise FormatError(f"{self.path}: damaged ({error}); {remedy(self.path)}") from None
        for image, checksum, key in zip(pixels, self._checksums[place], self.keys[first:stop], strict=True):
            if zlib.crc32(image) != checksum:
                raise FormatError(f"{self.path}: image {key!r} damaged (checksum differs); {remedy(self.path)}")
        return torch.from_numpy(pixels)

    def _read(self, place: slice) -> np.ndarray:
        if self._starts is None:
            return self._images[place]
        # Those of a batch are of one size.
        pixels = self._images[self._starts[place.start] : self._starts[place.stop]]
        return pixels.reshape(-1, *self._shapes[place.start])

    def prepared(self, stored: torch.Tensor) -> torch.Tensor:
        """Pixels normalised as the file tells; arrays as they are."""
        if stored.is_floating_point():
            return stored
        return normalised(stored, self._mean, self._std)


class ImageArray(Images):
    """Images in memory, or in a file that is mapped there: those `chosen` of float32 [N, ...], as a network takes them.

    Images of different sizes are a list of [...], and come in batches of one.

    `labels` are those of the chosen ones, in their order, or None. Images are copied batch by batch alone.
    """

    def __init__(
        self, images: torch.Tensor | list[torch.Tensor], labels: np.ndarray | None, chosen: np.ndarray | None = None
    ):
        self._images, self.labels = images, labels
        self._chosen = torch.from_numpy(np.arange(len(images)) if chosen is None else chosen)
        self.keys = tuple(map(str, range(len(self._chosen))))
        self.shape = tuple(images[self._chosen[0]].shape)
        self.batch_size = 1 if isinstance(images, list) else batch_size(self.shape)
        digest = hashlib.sha256()
        for place in self._chosen:
            if isinstance(images, list):
                digest.update(str(list(images[place].shape)).encode())
            digest.update(images[place].numpy().tobytes())
        if labels is not None:
            digest.update(stored_labels(labels).tobytes())
        self.fingerprint = digest.hexdigest()
        self._first = 0

    def stored(self, first: int, stop: int) -> torch.Tensor:
        """Images, float32 [stop - first, C, H, W]."""
        places = self._chosen[self._first + first : self._first + stop]
        return (
            torch.stack([self._images[i] for i in places]) if isinstance(self._images, list) else self._images[places]
        )

    def prepared(self, stored: torch.Tensor) -> torch.Tensor:
        """As they are."""
        return stored


class JoinedImages(Images):
    """Several collections, prepared alike, one after another, as one; labels are left behind.

    Images of different sizes come in batches of one.
    """

    def __init__(self, collections: Sequence[Images]):
        self._collections, self.labels, self._first = collections, None, 0
        self.keys = tuple(key for images in collections for key in images.keys)
        self.fingerprint = hashlib.sha256("".join(images.fingerprint for images in collections).encode()).hexdigest()
        self.shape, self.batch_size = collections[0].shape, collections[0].batch_size
        if any((images.shape, images.batch_size) != (self.shape, self.batch_size) for images in collections):
            self.batch_size = 1

    def stored(self, first: int, stop: int) -> torch.Tensor:
        """Images as the collections keep them."""
        first, stop, found = self._first + first, self._first + stop, []
        for images in self._collections:
            own = max(first, 0), min(stop, len(images))
            if own[0] < own[1]:
                found.append(images.stored(*own))
            first, stop = first - len(images), stop - len(images)
        return torch.cat(found)

    def prepared(self, stored: torch.Tensor) -> torch.Tensor:
        """As the first collection prepares its own."""
        return self._collections[0].prepared(stored)


def halved(images: Images) -> tuple[Images, Images]:
    """Both halves of some images: `Images.middle` tells where they are cut."""
    border = images.middle()
    return images.part(0, border), images.part(border, len(images))


class DeviceImages(Images):
    """Images on a GPU, where a network there finds them; `batch_size` is larger than on a CPU.

    They are sent there once, as they are kept, if they take no more than `room` bytes. If not, each batch is sent when
    it is asked for; the log says so.
    """

    def __init__(self, images: Images, device: torch.device, room: int):
        self.keys, self.labels, self.fingerprint = images.keys, images.labels, images.fingerprint
        self.shape, one_shape = images.shape, images.batch_size > 1
        self.batch_size = batch_size(images.shape, GPU_BATCH_RANGE, GPU_BATCH_VALUES) if one_shape else 1
        self._source, self._device, self._first = images, device, 0
        one = images.stored(0, 1)
        nbytes = len(images) * one.nbytes
        self._kept = None
        if not one_shape:
            return
        if nbytes > room:
            _log.info(
                "%.0f MB of images are sent to the GPU batch by batch: %.0f MB are theirs", nbytes / 1e6, room / 1e6
            )
            return
        self._kept = torch.empty((len(images), *one.shape[1:]), dtype=one.dtype, device=device)
        for start in images.starts():
            stop = min(start + images.batch_size, len(images))
            self._kept[start:stop] = images.stored(start, stop)

    def stored(self, first: int, stop: int) -> torch.Tensor:
        """Images as the source keeps them, on the GPU."""
        first, stop = self._first + first, self._first + stop
        if self._kept is None:
            return self._source.stored(first, stop).to(self._device)
        return self._kept[first:stop]

    def prepared(self, stored: torch.Tensor) -> torch.Tensor:
        """As the source prepares them, on the GPU."""
        return self._source.prepared(stored)

    def middle(self) -> int:
        """That of the source: halves do not depend on the device."""
        return self._source.part(self._first, self._first + len(self)).middle()
