"""What a search method is given, and what it offers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from wshare.artifacts.clusters import Clusters
from wshare.data.images import Images
from wshare.packed.compressed import Compressed
from wshare.quantize.statistics import Calibration
from wshare.search.evaluator import Evaluator, Key

# What a method chooses for one layer, as recipe.json holds it.
Setting = dict[str, Any]


class SettingError(Exception):
    """A setting in a recipe that its method cannot realise; the message names layer, entry and value."""


def entry(layer: str, setting: Setting, key: str, fits: Callable[[Any], bool], wanted: str) -> Any:
    """An entry of a layer's setting; SettingError, with what is `wanted`, unless it is there and `fits`."""
    if key not in setting:
        raise SettingError(f"layer {layer!r}: {key} is missing; it must be {wanted}")
    if not fits(setting[key]):
        raise SettingError(f"layer {layer!r}: {key} {setting[key]!r}: must be {wanted}")
    return setting[key]


@dataclass(frozen=True)
class Profiled:
    """One row of sensitivity.csv: a layer alone with k shared values."""

    k: int
    inertia: float
    relative_quality: float
    kl: float
    images: int


@dataclass(frozen=True)
class Artifacts:
    """What methods search and realise with; what a method's row does not name is None.

    `layers` are the names of the shared layers, in the network's order. `fisher` is the sum of each one's importance;
    `clusters` and `sensitivity` go by layer. `settings` is what they were made with, by section of the configuration
    (`importance`, `calibration`, `clustering` by layer, `sensitivity`), and `made_from` their hashes: both for the
    recipe. A model on a GPU has its `images` there.
    """

    model: nn.Module
    images: Images
    layers: tuple[str, ...]
    fisher: Mapping[str, float] | None = None
    calibration: Calibration | None = None
    clusters: Mapping[str, Clusters] | None = None
    sensitivity: Mapping[str, Sequence[Profiled]] | None = None
    settings: Mapping[str, dict] = field(default_factory=dict)
    made_from: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a search found.

    `layers` is the setting of each layer, and `chosen` the key under which it was measured. `points` are the
    measurements that front.csv shows, by key, each with columns of the method's own (the same for all); those whose
    quality the method takes for that of the target are in `met`. `losses` are
    the rows of losses.csv, `images_forwarded` counts by purpose, beside those of the measurements; `notes` are further
    entries of recipe.json.
    """

    layers: dict[str, Setting]
    chosen: Key
    points: dict[Key, dict[str, float]]
    met: frozenset[Key]
    losses: list[dict] = field(default_factory=list)
    images_forwarded: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class SearchMethod(Protocol):
    """A search method.

    `version` is raised when the same recipe is realised otherwise than before: recipes of other versions are refused.
    """

    version: int

    def prepare(self, artifacts: Artifacts, options: dict, threads: int) -> Any:
        """What is searched in, and realised from: a space. `options` are the method's in the configuration."""

    def budget(self, space: Any, options: dict) -> int:
        """Measurements made at most."""

    def search(self, space: Any, evaluator: Evaluator, settings: dict) -> Found:
        """The setting of each layer; `settings` is a search of the configuration, complete, and the seed."""

    def realise(self, space: Any, layers: Mapping[str, Setting]) -> Compressed:
        """Compressed tensors of the layers with these settings.

        It serves measuring, packing, `wshare apply` and the API: the same settings give the same bits. SettingError for
        one that is none of this method's.
        """
