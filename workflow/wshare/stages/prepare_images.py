"""Decode the images of a dataset once, in the network's geometry, into two disjoint splits."""

from collections import deque
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wshare.data.dataset import UnreadableImage, all_unreadable
from wshare.data.masks import labels_of
from wshare.data.matching import matched
from wshare.data.prepare import prepared_split, unlike_others
from wshare.data.registry import open_dataset
from wshare.data.splits import splits_of
from wshare.data.stored import write_images
from wshare.files.sealed import read_json
from wshare.progress import PROGRESS


def prepare_images(settings: dict, spec: Path, search_images: Path, held_out_images: Path) -> None:
    """Write the search and the held-out images, each in random order.

    Labels are indices of the network's classes. UserError if an image is in two splits, or classes do not agree.
    Images that are unreadable are left out with `on_bad_image: skip`, else UserError names all of them.
    """
    description = read_json(spec)
    preprocessing = description["preprocessing"]
    dataset = matched(open_dataset(settings), description, f"source {settings['source']!r}")
    splits = splits_of(dataset, settings["split"], settings["seed"])
    seen: dict[bytes, tuple[str, str]] = {}

    def write(name: str, path: Path | None) -> None:
        """Write a split; without a path look at its images alone."""
        # In random order, so that the first images of a file are a fair sample of it.
        chosen = np.random.default_rng(settings["seed"]).permutation(splits[name])
        keys = [dataset.keys[i] for i in chosen]
        labels = None if path is None else labels_of(dataset, chosen, description, settings["enlarge"])
        with tqdm(chosen, name, **PROGRESS) as bar:
            decoded = prepared_split(name, dataset, bar, preprocessing, settings)
            decoded = unlike_others(name, decoded, keys, seen, dataset.apart)
            if path is None:
                deque(decoded, maxlen=0)
            else:
                write_images(path, decoded, labels, keys, preprocessing, settings, len(splits["held_out"]))

    try:
        if dataset.apart and len(splits.get("train", ())):
            write("train", None)
        write("search", search_images)
        write("held_out", held_out_images)
    except UnreadableImage:
        raise all_unreadable(dataset, np.concatenate(list(splits.values()))) from None
