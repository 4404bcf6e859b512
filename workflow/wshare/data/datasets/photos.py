"""Natural photographs that installed packages bring along: which they are, and random crops of them."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from wshare.data.dataset import Dataset
from wshare.data.splits import SPLITS
from wshare.errors import UserError, one_line

# Package: the distribution to install and its folder of pictures.
PACKAGES = {
    "skimage": ("scikit-image>=0.26", "data"),
    "sklearn": ("scikit-learn>=1.9", "datasets/images"),
    "matplotlib": ("matplotlib>=3.11", "mpl-data/sample_data"),
}
# Every picture of these folders was looked at. Left out are drawings, logos, text, test patterns and silhouettes;
# what was taken through a microscope, a telescope or an eye; clock_motion, a blurred disc without detail; and
# motorcycle_right, the other view of a stereo pair, which would bring one scene into two splits.
PHOTOGRAPHS = (
    ("skimage", "astronaut.png"),  # portrait in colour, with a flag and a model of a shuttle behind
    ("skimage", "brick.png"),  # wall, grey: a texture
    ("skimage", "camera.png"),  # man with a camera on a tripod, grey
    ("skimage", "chelsea.png"),  # face of a cat
    ("skimage", "coffee.png"),  # cup on a wooden table
    ("skimage", "coins.png"),  # rows of old coins, grey
    ("skimage", "grass.png"),  # lawn seen from above, grey: a texture
    ("skimage", "gravel.png"),  # small stones, grey: a texture
    ("skimage", "motorcycle_left.png"),  # motorcycle in a garage
    ("skimage", "rocket.jpg"),  # rocket on its pad at dusk
    ("sklearn", "china.jpg"),  # temple above a lake
    ("sklearn", "flower.jpg"),  # blossom before leaves
    ("matplotlib", "grace_hopper.jpg"),  # portrait in colour, in uniform
)
SCALE, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10


def open_photos(settings: Mapping[str, Any]) -> Dataset:
    """As many crops for each split as its size says, of photographs that no other split has; `seed` deals them."""
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


@dataclass(frozen=True)
class Crop:
    """Crop `number` of one photograph, a place in PHOTOGRAPHS; with `seed` these decide its box and its flip."""

    photograph: int
    number: int
    seed: int

    @property
    def key(self) -> str:
        """Unique name: the photograph's file and the crop's number."""
        return f"{PHOTOGRAPHS[self.photograph][1]}/{self.number}"


def photograph_path(photograph: int) -> Path:
    """File of a photograph; UserError, with the versions that have it, if it is not installed."""
    package, name = PHOTOGRAPHS[photograph]
    wanted, folder = PACKAGES[package]
    # importlib.resources would import the package, which takes up to a second.
    found = importlib.util.find_spec(package)
    if found is None:
        raise UserError(f"source 'photos': {name} comes with {wanted}, which is missing; install it")
    path = Path(found.submodule_search_locations[0], folder, name)
    if not path.is_file():
        raise UserError(f"{path}: no such photograph in the installed version; install {wanted}")
    return path


def deal_photographs(sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Places in PHOTOGRAPHS of each split: all of them, each in one split, drawn with `seed`.

    `sizes` are numbers of images. Every split has one photograph at least, and the numbers are as near to the
    proportion of the sizes as whole numbers can be (Sainte-Lague's method).
    """
    counts = dict.fromkeys(sizes, 1)
    while sum(counts.values()) < len(PHOTOGRAPHS):
        counts[max(counts, key=lambda name: sizes[name] / (counts[name] + 0.5))] += 1
    order = iter(np.random.default_rng(seed).permutation(len(PHOTOGRAPHS)).tolist())
    return {name: [next(order) for _ in range(count)] for name, count in counts.items()}


def deal_crops(sizes: Mapping[str, int], seed: int) -> dict[str, list[Crop]]:
    """Crops of each split, as many as its size says, evenly over the split's photographs (one more, at most).

    Those of half the photographs come first, so that two halves of a split have next to no photograph in common.
    """
    dealt = deal_photographs(sizes, seed)
    return {name: _halves(dealt[name], size, seed) for name, size in sizes.items()}


def _halves(photographs: list[int], size: int, seed: int) -> list[Crop]:
    crops = [Crop(photographs[i % len(photographs)], i // len(photographs), seed) for i in range(size)]
    crops.sort(key=lambda crop: photographs.index(crop.photograph))
    halves = crops[: size // 2], crops[size // 2 :]
    # Within a half, photographs take turns: the first images are to be a fair sample.
    return [crop for half in halves for crop in sorted(half, key=lambda crop: crop.number)]


def read_crop(crops: Sequence[Crop], index: int) -> PIL.Image.Image:
    """Random part of a photograph, mode RGB, flipped or not, before it is resized to the network's input."""
    crop = crops[index]
    random = np.random.default_rng([crop.seed, crop.photograph, crop.number])
    photograph = _decoded(photograph_path(crop.photograph))
    part = photograph.crop(crop_box(photograph.size, random))
    return part.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part


def crop_box(size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop, drawn as torchvision's RandomResizedCrop draws it.

    The area is uniform in SCALE of the whole, the aspect ratio log-uniform in RATIO. `size` is (width, height).
    """
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(*map(math.log, RATIO)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(random.integers(width - wide + 1)), int(random.integers(height - high + 1))
            return left, top, left + wide, top + high
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


@cache
def _decoded(path: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: unreadable photograph ({one_line(error)}); install it again") from None
