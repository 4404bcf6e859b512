"""One layer's weights clustered for every number of shared values."""

import numpy as np

from wshare.artifacts.clusters import Clusters
from wshare.quantize.kmeans import sweep


def cluster(name: str, weight: np.ndarray, importance: np.ndarray | None, settings: dict) -> Clusters:
    """Clusters of a layer, by `clustering` settings of the configuration and a seed; both arrays are of one shape."""
    result = sweep(
        weight,
        importance,
        k_max=settings["k_max"],
        bins=settings["bins"],
        method=settings["method"],
        weighting=settings["weighting"],
        seed=settings["seed"],
        keep_zeros=settings["keep_zeros"],
    )
    candidates = sorted({min(k, len(result.inertia)) for k in settings["candidates"]})
    return Clusters(name, weight.shape, tuple(candidates), settings["weighting"], result)
