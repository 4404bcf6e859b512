"""Which images are for training, for the search, and held out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wshare.data import splits
from wshare.data.dataset import Dataset
from wshare.data.splits import split_indices, splits_of, whole_shares
from wshare.errors import UserError

SPLIT_SIZES = st.dictionaries(
    st.sampled_from(splits.SPLITS), st.one_of(st.integers(0, 60), st.floats(0.1, 0.33)), min_size=1
)


@pytest.mark.slow
@given(total=st.integers(180, 400), sizes=SPLIT_SIZES, seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=60, deadline=None)
def test_splits_are_disjoint_sized_and_independent_of_order(total, sizes, seed, data):
    labels = data.draw(st.sampled_from([None, np.arange(total) % 7, np.arange(total), np.arange(total) // 100]))
    splits = split_indices(total, labels, sizes, seed)
    assert splits.keys() == sizes.keys()
    for name, size in sizes.items():
        count = size if isinstance(size, int) else int(size * total + 1e-9)
        assert splits[name].shape == (count,)
        assert (np.diff(splits[name]) > 0).all()
    together = np.concatenate(list(splits.values()))
    assert len(np.unique(together)) == len(together)
    assert ((together >= 0) & (together < total)).all()
    shuffled = {name: sizes[name] for name in data.draw(st.permutations(list(sizes)))}
    again = split_indices(total, labels, shuffled, seed)
    for name in sizes:
        np.testing.assert_array_equal(splits[name], again[name])


def test_without_labels_splits_are_dealt_from_one_seeded_permutation():
    order = np.random.default_rng(5).permutation(5000)
    splits = split_indices(5000, None, {"held_out": 1500, "train": 0.5, "search": 1000}, seed=5)
    np.testing.assert_array_equal(splits["train"], np.sort(order[:2500]))
    np.testing.assert_array_equal(splits["search"], np.sort(order[2500:3500]))
    np.testing.assert_array_equal(splits["held_out"], np.sort(order[3500:]))
    other = split_indices(5000, None, {"train": 2500}, seed=6)
    assert not np.array_equal(splits["train"], other["train"])


@pytest.mark.parametrize(("size", "count"), [(0.29, 29), (0.999, 99), (100, 100), (0, 0)])
def test_size_is_a_count_or_a_fraction_rounded_down(size, count):
    assert len(split_indices(100, None, {"search": size}, seed=0)["search"]) == count


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
        split_indices(100, None, sizes, seed)


# With labels.

# Images of each label: many of a few labels, few of many, and one of each.
COUNTS = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=20), st.lists(st.integers(1, 3), min_size=20, max_size=60)
)


def labelled(counts, seed):
    """Labels of so many images each, in any order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3, counts))


def by_label(labels, chosen):
    return np.array([np.sum(labels[chosen] == label) for label in np.unique(labels)])


def assert_near(found, share):
    assert (found >= np.floor(share - 1e-9)).all()
    assert (found <= np.ceil(share + 1e-9)).all()


@pytest.mark.slow
@given(counts=COUNTS, shares=st.tuples(st.floats(0.01, 0.5), st.floats(0.01, 0.5)), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_each_split_gets_of_each_label_its_share_rounded_up_or_down(counts, shares, seed):
    labels = labelled(counts, seed)
    sizes = {name: int(share * len(labels)) for name, share in zip(("search", "held_out"), shares, strict=True)}
    splits = split_indices(len(labels), labels, sizes, seed)
    for name, size in sizes.items():
        assert len(splits[name]) == size
        assert_near(by_label(labels, splits[name]), np.array(counts) * size / len(labels))
    assert not set(splits["search"]) & set(splits["held_out"])


@pytest.mark.slow
@given(counts=COUNTS, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_all_three_splits_get_their_shares_where_no_image_is_left(counts, seed):
    labels = labelled(counts, seed)
    total = len(labels)
    sizes = {"train": total // 2, "search": total // 3}
    sizes["held_out"] = total - sum(sizes.values())
    splits = split_indices(total, labels, sizes, seed)
    for name, size in sizes.items():
        assert_near(by_label(labels, splits[name]), np.array(counts) * size / total)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(total))


@pytest.mark.slow
@given(counts=COUNTS, seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_what_a_network_is_trained_on_does_not_change_with_the_number_of_held_out_images(counts, seed):
    labels = labelled(counts, seed)
    total = len(labels)
    sizes = {"train": total // 2, "search": total // 5}
    without = split_indices(total, labels, sizes, seed)
    for held_out in (total // 10, total - total // 2 - total // 5):
        splits = split_indices(total, labels, sizes | {"held_out": held_out}, seed)
        assert [len(splits[name]) for name in splits] == [total // 2, total // 5, held_out]
        for name in without:
            np.testing.assert_array_equal(splits[name], without[name])
        left = np.array(counts) - by_label(labels, splits["train"]) - by_label(labels, splits["search"])
        assert_near(by_label(labels, splits["held_out"]), left * held_out / left.sum() if left.sum() else 0 * left)


def test_another_seed_takes_other_images_and_rounds_other_labels_up():
    labels = np.arange(90) // 3
    splits = [split_indices(90, labels, {"search": 45, "held_out": 45}, seed)["search"] for seed in (0, 1)]
    assert not np.array_equal(*splits)
    assert not np.array_equal(*(by_label(labels, split) for split in splits))
    np.testing.assert_array_equal(splits[0], split_indices(90, labels, {"search": 45}, 0)["search"])


@pytest.mark.slow
def test_a_label_of_one_image_is_in_a_split_as_often_as_its_share_says():
    """Ten labels of one image and ten of nine: every image goes to the search with probability 0.3."""
    labels = np.concatenate([np.arange(10), np.repeat(np.arange(10, 20), 9)])
    drawn = np.zeros(100)
    for seed in range(400):
        drawn[split_indices(100, labels, {"search": 30, "held_out": 50}, seed)["search"]] += 1
    # Five standard errors of a share of 0.3.
    assert np.abs(drawn / 400 - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 400)
    assert drawn[:10].mean() / 400 == pytest.approx(0.3, abs=0.04)


@pytest.mark.slow
@given(
    rows=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_whole_shares_have_the_sums_of_rows_and_columns_and_are_rounded_up_or_down(rows, cuts, seed):
    total = sum(rows)
    columns = np.diff([0, *sorted(int(cut * total) for cut in cuts), total])
    found = whole_shares(np.array(rows), columns, np.random.default_rng(seed))
    np.testing.assert_array_equal(found.sum(axis=1), rows)
    np.testing.assert_array_equal(found.sum(axis=0), columns)
    assert_near(found, np.outer(rows, columns) / max(total, 1))


@pytest.mark.slow
def test_whole_shares_are_their_fractions_on_average():
    rows, columns = np.array([1, 1, 2, 5]), [2, 3, 4]
    found = [whole_shares(rows, columns, np.random.default_rng(seed)) for seed in range(1500)]
    np.testing.assert_allclose(np.mean(found, axis=0), np.outer(rows, columns) / 9, atol=0.07)


def test_a_source_that_deals_its_images_itself_is_taken_at_its_word_and_labels_count_elsewhere():
    labels = np.arange(40) % 4
    dataset = Dataset(labels, tuple(map(str, range(40))), lambda i: None, 4)
    splits = splits_of(dataset, {"search": 0.5, "held_out": 0.5}, 3)
    assert by_label(labels, splits["search"]).tolist() == by_label(labels, splits["held_out"]).tolist() == [5, 5, 5, 5]
    own = {"search": np.arange(3), "held_out": np.arange(3, 9)}
    assert splits_of(Dataset(labels, dataset.keys, dataset.read, 4, own), {}, 3) is own
