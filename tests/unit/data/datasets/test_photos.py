"""Crops of the photographs that packages bring along: which, how they are drawn, and who gets them."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.data.dataset import Dataset
from wshare.data.datasets import photos
from wshare.data.datasets.photos import PACKAGES, PHOTOGRAPHS, crop_box, deal_crops, deal_photographs, photograph_path
from wshare.data.images import ImageFile
from wshare.data.prepare import prepare
from wshare.data.registry import open_dataset
from wshare.data.splits import splits_of
from wshare.errors import UserError
from wshare.files.sealed import write_json
from wshare.stages.prepare_images import prepare_images

ROOT = Path(__file__).parents[4]
SIZES = {"search": 30, "held_out": 45}
PREPROCESSING = {
    "channels": 3,
    "resize": 40,
    "crop": 32,
    "interpolation": "bilinear",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
COUNTS = st.dictionaries(st.sampled_from(["train", "search", "held_out"]), st.integers(1, 300), min_size=1)
SEEDS = st.integers(0, 2**32 - 1)


def opened(seed: int = 0, split: dict | None = None) -> Dataset:
    return open_dataset({"source": "photos", "split": split or SIZES, "seed": seed})


def stored(folder: Path, seed: int) -> tuple[ImageFile, ImageFile]:
    """What `prepare_images` leaves of `photos`."""
    folder.mkdir()
    write_json(folder / "model.json", {"preprocessing": PREPROCESSING})
    settings = {"source": "photos", "split": SIZES, "enlarge": True, "on_bad_image": "stop", "seed": seed}
    paths = folder / "search.h5", folder / "held_out.h5"
    prepare_images(settings, folder / "model.json", *paths)
    return ImageFile(paths[0]), ImageFile(paths[1])


@pytest.mark.parametrize("photograph", range(len(PHOTOGRAPHS)), ids=[name for _, name in PHOTOGRAPHS])
def test_every_photograph_is_installed_and_large_enough(photograph):
    with PIL.Image.open(photograph_path(photograph)) as image:
        assert image.mode in ("L", "RGB")
        assert min(image.size) >= 300


def test_the_wanted_versions_are_those_of_the_requirements():
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    assert [wanted for wanted, _ in PACKAGES.values() if wanted not in lines] == []


def test_a_photograph_that_is_missing_is_named_with_the_versions_that_have_it(monkeypatch):
    monkeypatch.setattr(photos, "PHOTOGRAPHS", (("skimage", "lost.png"),))
    monkeypatch.setattr("wshare.data.datasets.photos.PHOTOGRAPHS", photos.PHOTOGRAPHS)
    with pytest.raises(UserError, match="lost.png: no such photograph .*; install scikit-image>=0.26$"):
        opened()
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lost.png comes with scikit-image>=0.26, which is missing"):
        opened()


@pytest.mark.slow
@given(sizes=COUNTS, seed=SEEDS)
def test_every_photograph_is_in_one_split_and_crops_are_spread_evenly(sizes, seed):
    dealt, crops = deal_photographs(sizes, seed), deal_crops(sizes, seed)
    assert sorted(photograph for part in dealt.values() for photograph in part) == list(range(len(PHOTOGRAPHS)))
    for name, size in sizes.items():
        used = Counter(crop.photograph for crop in crops[name])
        assert len(crops[name]) == size
        assert set(used) <= set(dealt[name])
        assert len(used) == min(size, len(dealt[name])) >= 1
        assert max(used.values()) - min(used.values()) <= 1
    keys = [crop.key for part in crops.values() for crop in part]
    assert len(set(keys)) == len(keys)
    for part in crops.values():
        middle = len(part) // 2
        halves = [{crop.photograph for crop in half} for half in (part[:middle], part[middle:])]
        # The cut may fall within one photograph.
        assert len(halves[0] & halves[1]) <= 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((100, 100), (7, 6)), ((50, 150), (3, 10)), ((150, 50), (10, 3)), ((1, 1000), (1, 12))],
)
def test_photographs_are_dealt_in_proportion_to_the_images(sizes, expected):
    sizes = dict(zip(("search", "held_out"), sizes, strict=True))
    assert tuple(map(len, deal_photographs(sizes, 0).values())) == expected


def test_the_seed_decides_who_gets_which_photograph():
    assert deal_photographs(SIZES, 0) == deal_photographs(SIZES, 0)
    assert len({str(deal_photographs(SIZES, seed)) for seed in range(5)}) == 5


@given(width=st.integers(1, 700), height=st.integers(1, 700), seed=SEEDS)
def test_a_crop_lies_in_its_photograph(width, height, seed):
    left, top, right, bottom = crop_box((width, height), np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_have_the_areas_and_aspects_of_random_resized_crop():
    random = np.random.default_rng(0)
    boxes = np.array([crop_box((600, 500), random) for _ in range(4000)])
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    share, ratio = wide * high / (600 * 500), wide / high
    assert share.min() == pytest.approx(0.08, abs=0.01)
    assert share.max() > 0.9
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.01)
    assert (boxes[:, :2].min(0) == 0).all()
    assert (boxes[:, 2:].max(0) == (600, 500)).all()


@pytest.mark.parametrize(("size", "box"), [((400, 30), (180, 0, 220, 30)), ((30, 400), (0, 180, 30, 220))])
def test_a_photograph_that_no_crop_fits_gives_its_centre(size, box):
    class Largest:
        def uniform(self, low: float, high: float) -> float:
            return high

    assert crop_box(size, Largest()) == box


@pytest.mark.slow
def test_crops_are_parts_of_their_photograph_some_of_them_flipped():
    dataset = opened()
    pickle.loads(pickle.dumps(dataset.read))
    assert dataset.labels is None
    flipped = 0
    for index, key in enumerate(dataset.keys):
        name, number = key.split("/")
        photograph = [name for _, name in PHOTOGRAPHS].index(name)
        random = np.random.default_rng([0, photograph, int(number)])
        with PIL.Image.open(photograph_path(photograph)) as image:
            expected = np.asarray(image.convert("RGB").crop(crop_box(image.size, random)))
        found = np.asarray(dataset.read(index))
        flipped += (same := np.array_equal(found, expected[:, ::-1]))
        assert same or np.array_equal(found, expected)
    assert 20 < flipped < 55


@pytest.mark.parametrize("size", [0.5, 0, True])
def test_a_share_is_no_number_of_crops(size):
    with pytest.raises(UserError, match=f"split 'search': {size} is no count"):
        opened(split={"search": size, "held_out": 3})


def test_a_crop_is_resized_to_the_network_and_not_cut_again(tmp_path):
    search, held_out = stored(tmp_path / "a", seed=3)
    dataset = opened(seed=3)
    assert (search.shape, len(search), len(held_out)) == ((3, 32, 32), 30, 45)
    for index in (0, 10, 29):
        image = dataset.read(dataset.keys.index(search.keys[index]))
        expected = prepare(image, PREPROCESSING | {"resize": [32, 32], "crop": None})
        found = (search.batch(0)[index] * 0.5 + 0.5) * 255
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


@pytest.mark.slow
def test_stored_splits_share_no_photograph_and_the_seed_decides_their_bytes(tmp_path):
    first, again, other = (stored(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    for one, same, different in zip(first, again, other, strict=True):
        assert one.labels is None
        assert one.fingerprint == same.fingerprint != different.fingerprint
    names = [{key.split("/")[0] for key in part.keys} for part in first]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == len(PHOTOGRAPHS)
    # What a split holds is what the data set says it holds.
    splits = splits_of(opened(), SIZES, 0)
    assert set(first[0].keys) == {opened().keys[i] for i in splits["search"]}
