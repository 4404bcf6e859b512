"""Decode images that are to add to the calibration statistics alone."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from wshare.data.dataset import UnreadableImage, all_unreadable
from wshare.data.datasets.table import calibration_of
from wshare.data.images import ImageFile
from wshare.data.prepare import prepared_split, unlike_others
from wshare.data.registry import open_dataset
from wshare.data.stored import write_images
from wshare.files.sealed import read_json
from wshare.progress import PROGRESS


def prepare_calibration(
    settings: dict, spec: Path, search_images: Path, held_out_images: Path, calibration_images: Path
) -> None:
    """Write all images of the collection that a dataset names for its `calibration`, in random order, without labels.

    UserError if one of them is a search image or a held-out one: either is judged by networks that know none of it.
    Images that are unreadable are left out with `on_bad_image: skip`, else UserError names all of them.
    """
    preprocessing = read_json(spec)["preprocessing"]
    own = calibration_of(settings)
    dataset = open_dataset(own)
    chosen = np.random.default_rng(settings["seed"]).permutation(len(dataset.keys))
    keys = [dataset.keys[i] for i in chosen]
    seen = {}
    for name, path in (("search", search_images), ("held_out", held_out_images)):
        images = ImageFile(path)
        seen |= {found: (name, key) for found, key in zip(images.hashes(), images.keys, strict=True)}
    try:
        with tqdm(chosen, "calibration", **PROGRESS) as bar:
            decoded = prepared_split("calibration", dataset, bar, preprocessing, own)
            decoded = unlike_others("calibration", decoded, keys, seen, apart=True)
            write_images(calibration_images, decoded, None, keys, preprocessing, settings)
    except UnreadableImage:
        raise all_unreadable(dataset, chosen) from None
