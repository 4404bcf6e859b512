"""Random crops of photographs that installed packages bring."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset
from wshare.data.photos import PHOTOGRAPHS, deal_crops, photograph_path, read_crop
from wshare.data.splits import SPLITS
from wshare.errors import UserError


def _open_photos(settings: Mapping[str, Any]) -> Dataset:
    for photograph in range(len(PHOTOGRAPHS)):
        photograph_path(photograph)
    sizes = {name: settings["split"][name] for name in SPLITS if name in settings["split"]}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"split {name!r}: {size!r} is no count; 'photos' makes as many crops as a count says")
    dealt = deal_crops(sizes, settings["seed"])
    crops = [crop for name in sizes for crop in dealt[name]]
    ends = np.cumsum(list(sizes.values()), dtype=np.int64)
    splits = {name: np.arange(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
    keys = tuple(crop.key for crop in crops)
    return Dataset(None, keys, partial(read_crop, crops), classes=None, splits=splits, cropped=True)
