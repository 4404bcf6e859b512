"""Several collections of images as one."""

import numpy as np
import pytest
import torch

from wshare.data.images import ImageArray, JoinedImages, halved


def pictures(count: int, first: int, size: int = 8) -> ImageArray:
    """Images that hold their own number, from `first` on."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    return ImageArray(numbers.view(-1, 1, 1, 1).repeat(1, 3, size, size), np.arange(count))


def numbers(images: torch.Tensor) -> list[float]:
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> JoinedImages:
    """Eleven images of three collections, of which the first is the end of a larger one, in batches of four."""
    monkeypatch.setattr("wshare.data.images.batch_size", lambda shape, *_: 4)
    return JoinedImages([pictures(7, -2).part(2, 7), pictures(1, 5), pictures(5, 6)])


def test_batches_go_across_the_borders_of_collections(joined):
    assert len(joined) == 11
    assert [numbers(batch) for batch in joined.batches()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert joined.labels is None
    assert joined.keys[:6] == ("2", "3", "4", "5", "6", "0")


@pytest.mark.parametrize(("first", "stop"), [(0, 5), (5, 6), (4, 9), (6, 11), (3, 3 + 1)])
def test_a_part_holds_its_own_images(joined, first, stop):
    part = joined.part(first, stop)
    assert numbers(torch.cat(list(part.batches()))) == list(range(first, stop))


def test_a_part_of_a_part_counts_from_its_own_first(joined):
    part = joined.part(3, 10).part(1, 4)
    assert numbers(torch.cat(list(part.batches()))) == [4, 5, 6]


def test_images_of_other_sizes_come_one_by_one():
    joined = JoinedImages([pictures(2, 0), pictures(2, 2, size=9)])
    assert joined.batch_size == 1
    assert [(numbers(batch), batch.shape[-1]) for batch in joined.batches()] == [([0], 8), ([1], 8), ([2], 9), ([3], 9)]


def test_halves_are_cut_in_the_middle():
    first, second = halved(pictures(9, 0))
    assert [numbers(torch.cat(list(half.batches()))) for half in (first, second)] == [list(range(4)), list(range(4, 9))]
