"""Which images are for training, for the search, and held out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wshare.data import splits
from wshare.data.splits import split_indices
from wshare.errors import UserError

SPLIT_SIZES = st.dictionaries(
    st.sampled_from(splits.SPLITS), st.one_of(st.integers(0, 60), st.floats(0.1, 0.33)), min_size=1
)


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
