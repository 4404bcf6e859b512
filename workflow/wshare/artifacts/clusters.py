"""The clusters.h5 file of one layer: its sweep and the candidates to profile."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wshare.files.hdf5 import content_hash, create_h5, get_text, open_h5, read_arrays, set_text, write_arrays
from wshare.quantize.codebooks import Sweep

KIND = "clusters"
SWEEP = ("inertia", "weighted_inertia", "codebooks")


@dataclass(frozen=True)
class Clusters:
    """A layer's sweep, with its name, its weight's shape, and the numbers of shared values to profile.

    `weighting`, "none" or "importance", tells which of the sweep's two inertias was minimised.
    """

    layer: str
    shape: tuple[int, ...]
    candidates: tuple[int, ...]
    weighting: str
    sweep: Sweep

    @property
    def weights(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def objective(self) -> np.ndarray:
        """The inertia that was minimised: float64 [K]."""
        return self.sweep.inertia if self.weighting == "none" else self.sweep.weighted_inertia


def write_clusters(path: str | Path, clusters: Clusters, settings: dict, made_from: dict[str, str]) -> None:
    """Write one layer's clusters atomically; `made_from` as for `create_h5`."""
    with create_h5(path, KIND, settings, made_from) as file:
        set_text(file.attrs, layer=clusters.layer, weighting=clusters.weighting)
        file.attrs["shape"] = clusters.shape
        candidates, sweep = np.array(clusters.candidates, dtype=np.int64), clusters.sweep
        write_arrays(file, candidates=candidates, **{name: getattr(sweep, name) for name in SWEEP})


def read_clusters(path: str | Path, made_from: dict[str, str] | None = None) -> Clusters:
    """Clusters of one layer; FormatError if the file is not whole, or not made from what `made_from` tells."""
    with open_h5(path, KIND, made_from) as file:
        candidates, *sweep = read_arrays(file, "candidates", *SWEEP)
        return Clusters(
            layer=get_text(file.attrs, "layer"),
            shape=tuple(int(n) for n in file.attrs["shape"]),
            candidates=tuple(int(k) for k in candidates),
            weighting=get_text(file.attrs, "weighting"),
            sweep=Sweep(*sweep),
        )


def cluster_hashes(paths: list[Path], layers: list[Clusters]) -> dict[str, str]:
    """Hash of each layer's clusters and their settings, for the `made_from` of what is made from them."""
    return {f"clusters of {layer.layer}": content_hash(path, KIND) for path, layer in zip(paths, layers, strict=True)}
