"""The artifacts of a method, measured in memory: what `search.artifacts` reads from a run's files.

A module of its own, so that a search of the workflow does not depend on the code that measured its files.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from wshare.calibration.clustering import cluster
from wshare.calibration.importance import fisher_diagonal, total
from wshare.calibration.sensitivity import profile, row
from wshare.calibration.statistics import calibrate, further_images
from wshare.data.images import Images
from wshare.errors import UserError
from wshare.models.kinds.table import layer_of
from wshare.search.artifacts import profiles
from wshare.search.method import Artifacts
from wshare.tasks.task import Task


def measured_artifacts(
    needs: Sequence[str],
    task: Task,
    model: nn.Module,
    images: Images,
    layers: Sequence[str],
    settings: Mapping[str, dict],
    reference: np.ndarray | None = None,
    threads: int = 1,
    further: Images | None = None,
) -> Artifacts:
    """What `needs` names, measured on images with `settings`, as a recipe or the defaults of a configuration tell them.

    `further` are images for calibration statistics beside these. `reference` holds the float32 network's outputs [N,
    ...], for the sensitivity. UserError for fewer than two images.
    """
    if len(images) < 2:
        raise UserError(f"{len(images)} search image; compression needs at least two")
    found: dict = {}
    used = {}
    importance: dict[str, np.ndarray] = {}
    if "layer_weights" in needs or _reads_importance(needs, settings):
        used["importance"] = settings["importance"]
        few = images.part(0, settings["importance"]["images"])
        seed = settings["importance"]["seed"]
        importance = fisher_diagonal(task, model, few.batches(), list(layers), seed, threads)
    if "layer_weights" in needs:
        found["fisher"] = {name: total(array) for name, array in importance.items()}
    if "calibration" in needs:
        used["calibration"] = settings["calibration"] | further_images(further)
        few = images.part(0, settings["calibration"]["images"])
        found["calibration"] = calibrate(model, few, list(layers), settings["calibration"]["seed"], threads, further)
    if "clusters" in needs:
        used["clustering"] = {name: settings["clustering"][name] for name in layers}
        found["clusters"] = {
            name: cluster(name, layer_of(model, name).weight.numpy(force=True), importance.get(name), own)
            for name, own in used["clustering"].items()
        }
    if "sensitivity" in needs:
        few = images.part(0, settings["sensitivity"]["images"])
        outputs = reference[: len(few)]
        score = task.score(outputs, outputs, few.labels)
        probes = profile(task, model, list(found["clusters"].values()), few, outputs)
        found["sensitivity"] = profiles([row(task, probe, score) for probe in probes], found["clusters"])
    return Artifacts(model, images, tuple(layers), settings=used, **found)


def _reads_importance(needs: Sequence[str], settings: Mapping[str, dict]) -> bool:
    """Whether clusters are made by the importance of single weights, or tell the inertia that is weighted by it."""
    if "clusters" not in needs:
        return False
    return "sensitivity" in needs or any(own["weighting"] == "importance" for own in settings["clustering"].values())
