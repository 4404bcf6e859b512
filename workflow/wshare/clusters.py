"""The clusters.h5 file of one layer: its sweep and the candidates to profile."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wshare.kmeans import Sweep
from wshare.storage import COMPRESSED, create_h5, open_h5

KIND = "clusters"


@dataclass(frozen=True)
class Clusters:
    """A layer's sweep, with its name, its weight's shape, and the numbers of shared values to profile."""

    layer: str
    shape: tuple[int, ...]
    candidates: tuple[int, ...]
    sweep: Sweep

    @property
    def weights(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def k_max(self) -> int:
        """Largest k that has a codebook of its own."""
        return len(self.sweep.inertia)


def write_clusters(path: str | Path, clusters: Clusters, settings: dict) -> None:
    """Write one layer's clusters atomically."""
    with create_h5(path, KIND, settings) as file:
        file.attrs.update(layer=clusters.layer, shape=clusters.shape)
        file.create_dataset("candidates", data=np.array(clusters.candidates, dtype=np.int64), fletcher32=True)
        for name in ("inertia", "weighted_inertia", "codebooks"):
            file.create_dataset(name, data=getattr(clusters.sweep, name), **COMPRESSED)


def read_clusters(path: str | Path) -> Clusters:
    """Clusters of one layer; FormatError if the file is not whole."""
    with open_h5(path, KIND) as file:
        arrays = (file[name][:] for name in ("inertia", "weighted_inertia", "codebooks"))
        return Clusters(
            layer=file.attrs["layer"],
            shape=tuple(int(n) for n in file.attrs["shape"]),
            candidates=tuple(int(k) for k in file["candidates"][:]),
            sweep=Sweep(*arrays),
        )
