"""Images as people have them in PyTorch, all read to the same tensor."""

import itertools
from collections import namedtuple

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from wshare.data import loading
from wshare.data.images import ImageArray
from wshare.data.loading import gathered
from wshare.errors import UserError

IMAGES = torch.rand(10, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3
CPU = torch.device("cpu")
MEMMAP = np.memmap
PICTURES = [PIL.Image.fromarray(pixels) for pixels in (IMAGES * 255).byte().permute(0, 2, 3, 1).numpy()]
Pair = namedtuple("Pair", ["image", "label"])


def of_picture(picture: PIL.Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


class Items(Dataset):
    """A dataset that knows its length and has items of any form."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return self.make(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(IMAGES, LABELS, strict=True))


def batches(make):
    return [make(slice(first, first + 4)) for first in (0, 4, 8)]


WITH_LABELS = {
    "arrays": (IMAGES.numpy(), {"labels": LABELS.tolist()}),
    "loader": (DataLoader(TensorDataset(IMAGES, LABELS), 4), {}),
    "stream": (DataLoader(Stream(), 4), {}),
    "dataset": (TensorDataset(IMAGES, LABELS), {}),
    "mappings": (batches(lambda part: {"x": IMAGES[part], "labels": LABELS[part], "id": "a"}), {"take": "x"}),
    "items": (Items(lambda i: {"x": IMAGES[i], "label": int(LABELS[i])}), {"take": "x"}),
    "named": (batches(lambda part: Pair(IMAGES[part], LABELS[part])), {}),
    "function": (batches(lambda part: (0, LABELS[part], IMAGES[part])), {"take": lambda batch: (batch[2], batch[1])}),
    "generator": (((IMAGES[part], LABELS[part]) for part in (slice(0, 7), slice(7, 10))), {}),
}


@pytest.mark.parametrize("form", WITH_LABELS)
def test_everything_is_read_to_the_same_images_and_labels(form):
    images, given = WITH_LABELS[form]
    pixels, labels = gathered(images, given.pop("labels", None), "images", CPU, **given)
    assert torch.equal(pixels, IMAGES)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize(
    "images",
    [
        PICTURES,
        Items(lambda i: PICTURES[i]),
        [PICTURES[:6], PICTURES[6:]],
        DataLoader(Items(lambda i: PICTURES[i]), 4, collate_fn=list),
    ],
)
def test_pictures_go_through_the_models_own_preprocessing(images):
    pixels, labels = gathered(images, None, "images", CPU, preprocess=of_picture)
    assert torch.equal(pixels, torch.stack([of_picture(picture) for picture in PICTURES]))
    assert labels is None


@pytest.mark.parametrize("labels", [torch.rand(10, 4, 5), torch.rand(10) > 0.5, np.eye(10)])
def test_labels_may_have_any_shape(labels):
    parts = [(IMAGES[:6], labels[:6]), (IMAGES[6:], labels[6:])]
    for images, given in ((IMAGES, labels), (parts, None)):
        found = gathered(images, given, "images", CPU)[1]
        assert np.array_equal(found, np.asarray(labels).astype(found.dtype))
        assert found.dtype == (np.int64 if labels.dtype == torch.bool else np.float32)


def test_more_than_fits_in_memory_is_mapped_from_a_file(monkeypatch):
    monkeypatch.setattr(loading, "IN_MEMORY", 5 * IMAGES[0].nbytes)
    mapped = []
    monkeypatch.setattr(
        loading.np, "memmap", lambda *given, **named: mapped.append(MEMMAP(*given, **named)) or mapped[0]
    )
    expected = ImageArray(IMAGES, LABELS.numpy(), np.arange(10)[::-1].copy())
    pixels, labels = gathered(WITH_LABELS["loader"][0], None, "images", CPU)
    assert pixels.data_ptr() == mapped[0].ctypes.data
    images = ImageArray(pixels, labels[::-1], np.arange(10)[::-1].copy())
    assert torch.equal(images.batch(0), IMAGES.flip(0))
    assert np.array_equal(images.labels, labels[::-1])
    assert len(images.fingerprint) == len(expected.fingerprint)


@pytest.mark.parametrize("most", [2 << 30, 100])
@pytest.mark.parametrize("form", ["dataset", "loader", "list", "images", "arrays"])
def test_images_of_different_sizes_are_read_as_they_are(monkeypatch, most, form):
    monkeypatch.setattr(loading, "IN_MEMORY", most)
    expected = [IMAGES[i, :, : 2 + i % 3, i % 2 :] for i in range(10)]
    items = Items(lambda i: (expected[i], LABELS[i]))
    batches = [(image[None], label[None]) for image, label in zip(expected, LABELS, strict=True)]
    given = {"dataset": items, "loader": DataLoader(items, 1), "list": batches}
    given |= {"images": expected, "arrays": [image.numpy() for image in expected]}
    apart = LABELS if form in ("images", "arrays") else None
    found, labels = gathered(given[form], apart, "images", CPU)
    assert all(torch.equal(image, other) for image, other in zip(found, expected, strict=True))
    assert np.array_equal(labels, LABELS)
    order = np.array([3, 0, 9, 4])
    images = ImageArray(found, labels[order], order)
    assert (images.batch_size, len(images), images.shape) == (1, 4, (3, 2, 4))
    for batch, place in zip(images.batches(), order, strict=True):
        assert torch.equal(batch, expected[place][None])
    assert torch.equal(images.part(2, 4).batch(1), expected[4][None])
    assert images.middle() == 2
    other = ImageArray([image.clone() for image in expected], labels[order], order)
    assert images.fingerprint == other.fingerprint
    # The same values in another form are other images.
    turned = [image.reshape(image.shape[0], -1, 1) for image in expected]
    assert images.fingerprint != ImageArray(turned, labels[order], order).fingerprint


def test_batches_of_sequences_are_no_images():
    batches = [torch.rand(4, 3, 7), torch.rand(2, 3, 7)]
    assert torch.equal(gathered(batches, None, "images", CPU)[0], torch.cat(batches))


def test_a_loader_without_an_end_is_told(monkeypatch):
    monkeypatch.setattr(loading, "MOST_IMAGES", 100)
    with pytest.raises(UserError, match="images: gave 104 images and goes on; give a loader that ends, such as"):
        gathered(itertools.cycle([IMAGES[:4]]), None, "images", CPU)
    assert len(gathered([IMAGES] * 12, None, "images", CPU)[0]) == 120


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        (PICTURES, {}, "images: pictures of PIL; set preprocess= to the function"),
        ([{"x": IMAGES}], {}, "images: a batch is a mapping of 'x'; set input= to the images' key"),
        ([{"x": IMAGES}], {"take": "y"}, "images: input='y', but a batch has 'x'"),
        ([(IMAGES, LABELS, LABELS)], {}, "images: a batch is images, or .images, labels.; set input= to a function"),
        ([["a", "b"]], {}, "images: a batch holds a str where images should be"),
        (
            Items(lambda i: IMAGES[i, : 2 + i % 2]),
            {},
            r"images \[2, 4, 5\] and \[3, 4, 5\]; give them the same channels",
        ),
        ([(IMAGES, IMAGES), (IMAGES, IMAGES[:, :, :2])], {}, "images: labels of different shapes; give labels of one"),
    ],
)
def test_what_cannot_be_read_ends_in_one_line(images, given, message):
    with pytest.raises(UserError, match=message):
        gathered(images, None, "images", CPU, **given)
