"""Cluster one layer's weights for every k in one sweep."""

from pathlib import Path

from wshare.artifacts.clusters import write_clusters
from wshare.artifacts.weights import KIND, read_layer
from wshare.calibration.clustering import cluster
from wshare.files.hdf5 import read_settings


def cluster_layer(settings: dict, layer: str, layer_weights: Path, clusters: Path) -> None:
    """Write clusters.h5 of one layer."""
    weight, importance, made_from = read_layer(layer_weights, layer)
    found = cluster(layer, weight, importance, settings)
    # The recipe tells how the importance was measured, too: it may weigh the inertia.
    measured = {"importance": read_settings(layer_weights, KIND)}
    write_clusters(clusters, found, settings | measured, made_from)
    print(f"{layer}: {weight.size} weights, k = 1 to {len(found.sweep.inertia)}")
