"""The artifacts of a method, read from a run's files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from wshare.artifacts.calibration import KIND as CALIBRATION
from wshare.artifacts.calibration import read_calibration
from wshare.artifacts.clusters import KIND as CLUSTERS
from wshare.artifacts.clusters import Clusters, cluster_hashes, read_clusters
from wshare.artifacts.sensitivity import columns as sensitivity_columns
from wshare.artifacts.weights import KIND as WEIGHTS
from wshare.artifacts.weights import read_fisher
from wshare.data.images import Images
from wshare.errors import UserError
from wshare.files.hdf5 import content_hash, read_settings
from wshare.files.sealed import check_origin
from wshare.files.tables import read_sealed
from wshare.search.method import Artifacts, Profiled
from wshare.tasks.task import Task


@dataclass(frozen=True)
class Files:
    """Files of a run that methods read; those that a method does not need are left out."""

    layer_weights: Path | None = None
    calibration: Path | None = None
    clusters: list[Path] = field(default_factory=list)
    sensitivity: Path | None = None

    def present(self) -> list[Path]:
        """Those that are given."""
        return [path for path in (self.layer_weights, self.calibration, *self.clusters, self.sensitivity) if path]


def read_artifacts(
    needs: Sequence[str],
    files: Files,
    task: Task,
    model: nn.Module,
    images: Images,
    layers: Sequence[str],
    made_from: dict[str, str],
) -> Artifacts:
    """What `needs` names, from files; `made_from` holds the hashes of model and images that all must come from.

    UserError if a file that is needed is not given; FormatError for one that is damaged or made from something else.
    """
    for name in needs:
        if not getattr(files, name):
            raise UserError(f"--{name.replace('_', '-')}: missing; the method of this search needs it")
    found: dict = {}
    settings: dict[str, dict] = {}
    hashes: dict[str, str] = {}
    if "layer_weights" in needs:
        found["fisher"] = read_fisher(files.layer_weights, made_from)
        settings["importance"] = read_settings(files.layer_weights, WEIGHTS)
        hashes["weights.h5"] = content_hash(files.layer_weights, WEIGHTS)
    if "calibration" in needs:
        found["calibration"] = read_calibration(files.calibration, list(layers), made_from)
        settings["calibration"] = read_settings(files.calibration, CALIBRATION)
        hashes["calibration.h5"] = content_hash(files.calibration, CALIBRATION)
    if "clusters" in needs:
        clusters = [read_clusters(path, made_from) for path in files.clusters]
        found["clusters"] = {layer.layer: layer for layer in clusters}
        own = [read_settings(path, CLUSTERS) for path in files.clusters]
        importance = [each.pop("importance") for each in own]
        # All layers' importance comes from one file.
        settings["importance"] = importance[0]
        settings["clustering"] = {layer.layer: each for layer, each in zip(clusters, own, strict=True)}
        hashes |= cluster_hashes(files.clusters, clusters)
    if "sensitivity" in needs:
        rows, origin = read_sealed(files.sensitivity, sensitivity_columns(task.PROFILED))
        check_origin(files.sensitivity, origin, made_from | hashes)
        found["sensitivity"] = profiles(rows, found["clusters"])
    return Artifacts(model, images, tuple(layers), settings=settings, made_from=hashes, **found)


def profiles(rows: Sequence[Mapping], clusters: Mapping[str, Clusters]) -> dict[str, list[Profiled]]:
    """Rows of sensitivity.csv by layer, each with the inertia that its clustering minimised."""
    inertias = {
        name: "inertia" if layer.weighting == "none" else "weighted_inertia" for name, layer in clusters.items()
    }
    found: dict[str, list[Profiled]] = {}
    for entry in rows:
        name = entry["layer"]
        found.setdefault(name, []).append(
            Profiled(
                k=int(entry["k"]),
                inertia=float(entry[inertias[name]]),
                relative_quality=float(entry["relative_quality"]),
                kl=float(entry["kl"]),
                images=int(entry["images"]),
            )
        )
    return found
