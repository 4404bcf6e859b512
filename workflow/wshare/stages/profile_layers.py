"""Profile a group of neighbouring layers: each alone shared at each candidate k."""

from pathlib import Path

from wshare.artifacts.clusters import cluster_hashes, read_clusters
from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.artifacts.sensitivity import columns
from wshare.calibration.sensitivity import profile, row
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.files.sealed import read_json
from wshare.files.tables import write_sealed
from wshare.tasks.table import task_of


def profile_layers(
    settings: dict,
    spec: Path,
    weights: Path,
    search_images: Path,
    search_outputs: Path,
    clusters: list[Path],
    table: Path,
    gpus: int,
) -> None:
    """Write the group's rows of the sensitivity table; `clusters` are in the network's order."""
    sample, description = ImageFile(search_images, limit=settings["images"]), read_json(spec)
    kind = task_of(description)
    outputs = read_outputs(search_outputs, sample, description["sha256"])
    made_from = {"model": description["sha256"], "images": sample.fingerprint}
    reference = kind.score(outputs, outputs, sample.labels)
    layers = [read_clusters(path, made_from) for path in clusters]
    device = device_of(gpus)
    probes = profile(kind, read_model(spec, weights, device), layers, placed(sample, device), outputs)
    made_from |= cluster_hashes(clusters, layers)
    write_sealed(table, columns(kind.PROFILED), [row(kind, probe, reference) for probe in probes], made_from)
