"""Masks, read from files and placed as their images are."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.unit.data.pictures import noise, one_line, save
from wshare.data.dataset import Dataset
from wshare.data.images import ImageFile
from wshare.data.joining import joined
from wshare.data.masks import labels_of, prepared_masks
from wshare.data.prepare import prepare
from wshare.data.registry import open_dataset
from wshare.errors import UserError
from wshare.files.sealed import write_json
from wshare.models.preprocessing import IGNORED, complete_preprocessing
from wshare.stages.prepare_images import prepare_images

SIZE = (30, 41)


def classes(*shape: int, count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, shape).astype(np.uint8)


def described(size, **preprocessing) -> dict:
    return {"task": "segmentation", "mask": list(size), "preprocessing": complete_preprocessing(preprocessing)}


def opened(folder: Path, *masks: PIL.Image.Image | np.ndarray, **given) -> Dataset:
    rows = ["image,mask"]
    for place, mask in enumerate(masks):
        size = mask.size[::-1] if isinstance(mask, PIL.Image.Image) else mask.shape[:2]
        save(folder / "images" / f"{place}.jpg", noise(*size, 3, seed=place))
        save(folder / "masks" / f"{place}.png", mask)
        rows.append(f"images/{place}.jpg,masks/{place}.png")
    (folder / "list.csv").write_text("\n".join(rows))
    return open_dataset({"source": "table", "path": str(folder / "list.csv")} | given)


def prepared(dataset: Dataset, description: dict, enlarge: bool = True) -> np.ndarray:
    return prepared_masks(dataset, range(len(dataset.keys)), description, enlarge)


@pytest.mark.parametrize(
    "geometry",
    [
        {"crop": 24},
        {"crop": [20, 52]},
        {"resize": 40, "crop": [36, 24]},
        {"resize": [50, 26], "crop": 26},
        {"crop": [32, 64], "letterbox": 7},
    ],
)
@pytest.mark.parametrize("enlarge", [True, False])
def test_a_mask_is_placed_as_its_image(tmp_path, geometry, enlarge):
    # An image that shows its own mask, resized as a mask is, has the mask's values wherever it lies.
    mask = classes(*SIZE)
    dataset, given = opened(tmp_path, mask), geometry | {"channels": 1, "interpolation": "nearest"}
    crop = geometry["crop"]
    size = (crop, crop) if isinstance(crop, int) else crop
    found = prepared(dataset, described(size, **given), enlarge)[0]
    shown = prepare(PIL.Image.fromarray(mask + 10), complete_preprocessing(given), enlarge)[0]
    inside = shown >= 10
    np.testing.assert_array_equal(found[inside], shown[inside] - 10)
    assert (found[~inside] == IGNORED).all()
    assert found.shape == tuple(size)
    # The filter of the images is none for classes.
    other = prepared(dataset, described(size, **given | {"interpolation": "bicubic"}), enlarge)[0]
    np.testing.assert_array_equal(other, found)


def test_every_type_of_mask_is_read(tmp_path):
    mask = classes(*SIZE, count=2)
    palette = PIL.Image.fromarray(mask)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    dataset = opened(
        tmp_path, mask, palette, PIL.Image.fromarray(mask * 255).convert("1"), mask.astype(np.uint16) * 300
    )
    # Of a mask the values count, whatever colours they have.
    assert [PIL.Image.open(tmp_path / "masks" / f"{i}.png").mode for i in range(4)] == ["L", "P", "1", "I;16"]
    for index, factor in enumerate((1, 1, 1, 300)):
        np.testing.assert_array_equal(dataset.masks(index), mask.astype(int) * factor)
    assert dataset.labels is None
    assert prepared(dataset, described(SIZE, crop=list(SIZE)))[3].max() == 300


def test_pixel_values_are_classes_by_a_map(tmp_path):
    mask = classes(*SIZE, count=3) * 100
    (tmp_path / "map.json").write_text(json.dumps({"0": IGNORED, "100": 1, "200": 0}))
    dataset = opened(tmp_path, mask, class_map=str(tmp_path / "map.json"))
    np.testing.assert_array_equal(dataset.masks(0), np.array([IGNORED, 1, 0])[mask // 100])
    save(tmp_path / "masks" / "0.png", mask + 1)
    with pytest.raises(UserError, match=r"map.json: no index for pixel value 1 of .*0.png; add '1' to the map"):
        dataset.masks(0)


def test_a_mask_has_the_size_of_the_outputs(tmp_path, caplog):
    mask = np.repeat(np.repeat(classes(6, 8), 4, 0), 4, 1)
    dataset = opened(tmp_path, mask, mask)
    with caplog.at_level("INFO", "wshare"):
        found = prepared(dataset, described((6, 8), crop=[24, 32]))
    np.testing.assert_array_equal(found, [classes(6, 8)] * 2)
    told = "masks are resized to the network's outputs, 6 x 8, by nearest neighbour"
    assert [record.message for record in caplog.records] == [told]


def test_the_images_of_a_run_have_their_masks(tmp_path):
    masks = [classes(4, 5, seed=seed) for seed in range(6)]
    dataset = opened(tmp_path, *masks)
    (tmp_path / "images" / "3.jpg").write_bytes(b"damaged")
    write_json(tmp_path / "model.json", described((4, 5), crop=[4, 5]))
    settings = {"source": "table", "path": str(tmp_path / "list.csv"), "enlarge": True, "on_bad_image": "skip"}
    files = [tmp_path / "search.h5", tmp_path / "held_out.h5"]
    prepare_images(settings | {"split": {"search": 4, "held_out": 2}, "seed": 0}, tmp_path / "model.json", *files)
    found = {}
    for images in map(ImageFile, files):
        assert images.labels.dtype == np.int64
        found |= dict(zip(images.keys, images.labels, strict=True))
    assert found.keys() == {key for key in dataset.keys if "3" not in key}
    for key, mask in found.items():
        np.testing.assert_array_equal(mask, masks[dataset.keys.index(key)])


def test_masks_of_two_tables_are_those_of_their_images(tmp_path):
    first, second = (
        opened(tmp_path / name, *(classes(4, 4, seed=seed) for seed in seeds))
        for name, seeds in (("a", (1, 2)), ("b", (3,)))
    )
    both = joined(first, second, {"search": "all", "held_out": "all"}, 0)
    found = labels_of(both, np.array([2, 0, 1]), described((4, 4), crop=4), True)
    np.testing.assert_array_equal(found, [classes(4, 4, seed=seed) for seed in (3, 1, 2)])
    with pytest.raises(UserError, match="held_out: give labels with both"):
        joined(first, opened(tmp_path / "b", classes(4, 4), labels=False), {"search": 1, "held_out": 1}, 0)


def test_what_is_no_mask_ends_in_one_line(tmp_path):
    def told(dataset: Dataset, description: dict | None = None) -> str:
        with pytest.raises(UserError) as error:
            prepared(dataset, description or described(SIZE, crop=list(SIZE)))
        return one_line(error)

    assert "0.png: a mask of colours (mode RGB); save classes as grey or with a palette" in told(
        opened(tmp_path, noise(*SIZE, 3))
    )
    dataset = opened(tmp_path, classes(*SIZE, count=2) * 255)
    assert 'all pixels are 0 or 255, which is for pixels that do not count; give a class_map, such as {"0"' in told(
        dataset
    )
    assert "the network's task is classification; set its task to segmentation" in told(
        dataset, {"task": "classification"}
    )
    save(tmp_path / "masks" / "0.png", classes(9, 8))
    assert "0.png: 8 x 9 pixels, but " in told(dataset)
    (tmp_path / "masks" / "0.png").write_bytes(b"damaged")
    assert "0.png: unreadable mask (cannot identify image file" in told(dataset)
