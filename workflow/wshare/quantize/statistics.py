"""Calibration statistics: what the error of a layer's outputs follows from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InputStatistics:
    """Mean and second moment of the inputs that one output of a layer is a weighted sum of.

    `mean` is float32 [groups, columns]; `second`, about zero, is float32 [groups, columns, columns], or
    [groups, columns] where only the diagonal is known. Columns are in the order of the flattened weight of
    one output. `images` and `positions` tell how many samples they are averages of.
    """

    mean: np.ndarray
    second: np.ndarray
    images: int
    positions: int

    @property
    def energy(self) -> np.ndarray:
        """Mean square of each input: float32 [groups, columns]."""
        return self.second if self.second.ndim == 2 else np.einsum("gii->gi", self.second)


def merged(first: InputStatistics, second: InputStatistics) -> InputStatistics:
    """Statistics over the images of both."""
    share = first.images / (first.images + second.images)
    return InputStatistics(
        share * first.mean + (1 - share) * second.mean,
        share * first.second + (1 - share) * second.second,
        first.images + second.images,
        first.positions,
    )


class Statistics(Mapping[str, InputStatistics]):
    """Statistics by layer, got anew each time one is asked for: those of all layers together fill the memory."""

    def __init__(self, layers: Sequence[str], get: Callable[[str], InputStatistics]):
        self._layers, self._get = layers, get

    def __getitem__(self, layer: str) -> InputStatistics:
        return self._get(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


Halves = tuple[Mapping[str, InputStatistics], Mapping[str, InputStatistics]]


@dataclass(frozen=True)
class Calibration:
    """Calibration statistics by layer of the two halves of the search images, which teach and score each other.

    `further` are those of the two halves of further images, which have no labels; each teaches along with a half of the
    search images. `border` and `further_border` are the numbers of images in the first halves, mirror images not
    counted.
    """

    halves: Halves
    border: int
    further: Halves | None = None
    further_border: int = 0

    @property
    def parts(self) -> list[Mapping[str, InputStatistics]]:
        """Both halves, and those of the further images where there are any."""
        return [*self.halves, *(self.further or ())]

    @property
    def first_half(self) -> int:
        """How many search images and further ones the first halves hold together."""
        return self.border + self.further_border

    @property
    def images(self) -> int:
        """How many, with mirror images, all of these were measured on."""
        return sum(next(iter(part.values())).images for part in self.parts)

    def taught(self, half: int) -> Mapping[str, InputStatistics]:
        """What a half of the images tells, with a half of the further ones."""
        return _merged(self.halves[half], self.further and self.further[half])

    def together(self) -> Mapping[str, InputStatistics]:
        """Statistics by layer over all images."""
        return _merged(_merged(*self.halves), self.further and _merged(*self.further))


def _merged(
    first: Mapping[str, InputStatistics], second: Mapping[str, InputStatistics] | None
) -> Mapping[str, InputStatistics]:
    if second is None:
        return first
    return Statistics(list(first), lambda name: merged(first[name], second[name]))
