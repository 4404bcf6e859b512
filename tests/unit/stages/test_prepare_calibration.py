"""Images for calibration alone: another collection, without labels, none of it searched with or held out."""

import numpy as np
import pytest

from tests.unit.data.pictures import noise, one_line, save
from wshare.data.images import ImageFile
from wshare.errors import UserError
from wshare.files.sealed import write_json
from wshare.stages.prepare_calibration import prepare_calibration
from wshare.stages.prepare_images import prepare_images

PREPROCESSING = {"channels": 3, "resize": None, "crop": 4, "interpolation": "bilinear", "mean": [0] * 3, "std": [1] * 3}
SETTINGS = {"source": "imagefolder", "enlarge": True, "on_bad_image": "stop", "seed": 0}


def save_all(folder, seeds):
    for seed in seeds:
        save(folder / f"{seed}.png", noise(4, 4, 3, seed=seed))


def run(root):
    """All images for calibration beside those of a search, from files."""
    write_json(root / "model.json", {"preprocessing": PREPROCESSING, "classes": None})
    files = [root / f"{name}.h5" for name in ("search", "held_out", "calibration")]
    dealt = {"path": str(root / "own"), "labels": True, "class_map": "sorted", "split": {"search": 2, "held_out": 2}}
    prepare_images(SETTINGS | dealt, root / "model.json", *files[:2])
    further = {"path": str(root / "own"), "calibration": {"path": str(root / "further")}}
    prepare_calibration(SETTINGS | further, root / "model.json", *files)
    return ImageFile(files[2])


def test_all_images_of_the_collection_are_taken_in_random_order_and_without_labels(tmp_path):
    for folder, seeds in (("own/a", (1, 2)), ("own/b", (3, 4)), ("further/any/depth", (5, 6, 7)), ("further", (8, 9))):
        save_all(tmp_path / folder, seeds)
    found = run(tmp_path)
    assert found.labels is None
    assert sorted(found.keys) == ["8.png", "9.png", "any/depth/5.png", "any/depth/6.png", "any/depth/7.png"]
    assert list(found.keys) != sorted(found.keys)
    place = found.keys.index("any/depth/6.png")
    np.testing.assert_array_equal(found.stored(place, place + 1)[0], np.moveaxis(noise(4, 4, 3, seed=6), 2, 0))


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_an_image_that_is_searched_with_or_held_out_stops(tmp_path, seed):
    for folder, seeds in (("own/a", (1, 2)), ("own/b", (3, 4)), ("further", (5, seed))):
        save_all(tmp_path / folder, seeds)
    with pytest.raises(UserError) as error:
        run(tmp_path)
    assert "1 images of split 'calibration' are in split" in one_line(error)
    assert not (tmp_path / "calibration.h5").exists()


def test_all_images_that_cannot_be_decoded_are_named(tmp_path):
    for folder, seeds in (("own/a", (1, 2)), ("own/b", (3, 4)), ("further", (5,))):
        save_all(tmp_path / folder, seeds)
    for name in ("x.png", "y.png"):
        (tmp_path / "further" / name).write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        run(tmp_path)
    assert "2 unreadable images" in one_line(error)
    assert all(name in str(error.value) for name in ("x.png", "y.png"))
