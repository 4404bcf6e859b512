"""Cluster one layer's weights for every k in one sweep."""

from pathlib import Path

from wshare.artifacts.clusters import Clusters, write_clusters
from wshare.artifacts.weights import read_layer
from wshare.quantize.kmeans import sweep


def cluster_layer(settings: dict, layer: str, layer_weights: Path, clusters: Path) -> None:
    """Write clusters.h5 of one layer."""
    weight, importance, made_from = read_layer(layer_weights, layer)
    result = sweep(
        weight,
        importance,
        k_max=settings["k_max"],
        bins=settings["bins"],
        method=settings["method"],
        weighting=settings["weighting"],
        seed=settings["seed"],
    )
    largest = len(result.inertia)
    candidates = sorted({min(k, largest) for k in settings["candidates"]})
    found = Clusters(layer, weight.shape, tuple(candidates), settings["weighting"], result)
    write_clusters(clusters, found, settings, made_from)
    print(f"{layer}: {weight.size} weights, k = 1 to {largest}")
