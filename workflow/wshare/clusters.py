"""The clusters.h5 file of one layer: its sweep and the candidates to profile."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wshare.codebooks import Sweep
from wshare.storage import COMPRESSED, create_h5, get_text, open_h5, set_text

KIND = "clusters"


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


def write_clusters(path: str | Path, clusters: Clusters, settings: dict) -> None:
    """Write one layer's clusters atomically."""
    with create_h5(path, KIND, settings) as file:
        set_text(file.attrs, layer=clusters.layer, weighting=clusters.weighting)
        file.attrs["shape"] = clusters.shape
        file.create_dataset("candidates", data=np.array(clusters.candidates, dtype=np.int64), fletcher32=True)
        for name in ("inertia", "weighted_inertia", "codebooks"):
            file.create_dataset(name, data=getattr(clusters.sweep, name), **COMPRESSED)


def read_clusters(path: str | Path) -> Clusters:
    """Clusters of one layer; FormatError if the file is not whole."""
    with open_h5(path, KIND) as file:
        arrays = (file[name][:] for name in ("inertia", "weighted_inertia", "codebooks"))
        return Clusters(
            layer=get_text(file.attrs, "layer"),
            shape=tuple(int(n) for n in file.attrs["shape"]),
            candidates=tuple(int(k) for k in file["candidates"][:]),
            weighting=get_text(file.attrs, "weighting"),
            sweep=Sweep(*arrays),
        )
