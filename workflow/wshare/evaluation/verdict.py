"""The verdict on a packed file: what metrics.json says of any run."""

import math
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from wshare.evaluation.chances import has_given_size
from wshare.evaluation.intervals import (
    CONFIDENCE,
    Counts,
    deciding_images,
    interval,
    kept,
    margin,
    method_name,
    verdict,
)
from wshare.evaluation.means import Means
from wshare.tasks.task import AGREEMENT, Score, Task, own_figures
from wshare.version import __version__

# Of images that tell next to nothing, in nats, no share is taken.
LEAST_INFORMATION = 1e-9
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "h5py", "safetensors", "constriction")


# Classes that metrics.json tells of: those that lost most.
CLASSES = 5


def compare(
    task: Task, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0
) -> dict:
    """Quality before and after compression as metrics.json gives it; arrays and temperature as for the task's `score`.

    `constant` tells what the best network would reach that gives one output whatever the image.
    """
    before, after = (task.score(array, reference, labels, temperature) for array in (reference, outputs))
    constant, agreement = task.constant(reference, labels, temperature), task.measure(labels) == AGREEMENT
    found = kept(after, before)
    half_width = margin(after.expected_error)
    alone = [figure.key for figure in own_figures(task)]
    compared = [figure.key for figure in task.FIGURES if figure.compares]
    images = {"images": len(outputs)}
    return {
        "measure": task.measure(labels),
        "quality": getattr(task, "QUALITY", None),
        "float32": {key: before.figures[key] for key in alone} | images,
        "compressed": {key: after.figures[key] for key in alone}
        | images
        | {"kl": after.kl, "relative_kl": relative_kl(after.kl, constant.kl)}
        | {key: after.figures[key] for key in compared},
        "relative_quality": found.share,
        "relative_quality_ci95": list(interval(found, agreement)),
        "deviation": found.deviation,
        "counts": asdict(found) if isinstance(found, Counts) else None,
        "interval": {"method": method_name(found, agreement), "confidence": CONFIDENCE},
        "expected_relative_quality": after.expected,
        "expected_relative_quality_ci95": [after.expected - half_width, after.expected + half_width],
        "temperature": temperature,
        "constant": _constant(constant, before, agreement),
        "classes": task.classes(outputs, reference, labels)[:CLASSES],
    }


def _constant(constant: Score, before: Score, agreement: bool) -> dict:
    found = kept(constant, before)
    return {
        "relative_quality": found.share,
        "relative_quality_ci95": list(interval(found, agreement)),
        "expected_relative_quality": constant.expected,
        "kl": constant.kl,
    }


def relative_kl(kl: float, information: float) -> float:
    """Divergence as a share of what the images tell, both in nats: 0 of the float32 network, 1 of the best constant."""
    return kl / max(information, LEAST_INFORMATION)


def judged(quality: dict, target: float) -> dict[str, Any]:
    """The `verdict`, and what is `needed` for another: entries of metrics.json, from those of `compare`.

    Where the best constant network is not clearly below the target, these images tell no network that works from one
    that does not, and "met" is not said. Of scores that are no counts, too few images decide nothing.
    """
    found, held = verdict(*quality["relative_quality_ci95"], target), _kept(quality)
    few = isinstance(held, Means) and held.images < held.fewest
    constant = quality["constant"]["relative_quality_ci95"][1] >= target
    if few or (found == "met" and constant):
        found = "undecided"
    needed: dict[str, Any] = {"balanced_images": constant, "held_out_images": None, "quality_target": None}
    if found == "undecided" and not constant:
        # Rounded down: at this target the verdict is "met".
        low = math.floor(quality["relative_quality_ci95"][0] * 1e4) / 1e4
        needed |= {
            "held_out_images": deciding_images(held, target),
            "quality_target": low if low > 0 and not few else None,
        }
    return {"verdict": found, "needed": needed}


def _kept(quality: dict) -> Counts | Means:
    if quality["counts"]:
        return Counts(**quality["counts"])
    share, images = quality["relative_quality"], quality["compressed"]["images"]
    method = quality["interval"]["method"]
    return Means(share, quality["deviation"], images, *quality["relative_quality_ci95"], method)


def describe(quality: dict, target: float, sizes: dict, recipe: dict, seed: int, hashes: dict[str, str]) -> dict:
    """Quality, verdict, sizes, effort and versions of one compressed network: the same for the same inputs.

    `quality` is what `compare` returns for the held-out images, `sizes` the content of sizes.json, `recipe` that of
    recipe.json; `hashes` goes by what they are of.
    """
    nbytes = sizes["bytes"]
    return {
        "task": recipe["task"],
        "quality_target": target,
        **quality,
        **judged(quality, target),
        "accepted": _accepted(recipe),
        "bytes": nbytes,
        "compression_rate": {
            "on_disk": nbytes["float32"] / nbytes["packed"],
            "analytic": 32 * sizes["weights"] / sizes["analytic_bits"],
        },
        "bits_per_weight": 8 * nbytes["packed"] / sizes["parameters"],
        "format": sizes["format"],
        "batch_norm": sizes["batch_norm"],
        "folded_batch_norms": sizes["folded_batch_norms"],
        "predicted_loss_rank_correlation": recipe.get("predicted_loss_rank_correlation"),
        "evaluations": recipe["evaluations"],
        # Passes of gradient calibration, None without: some call it retraining, so every report tells of it.
        "gradient_epochs": recipe.get("gradient_epochs"),
        "images_forwarded": sum(recipe["images_forwarded"].values()),
        "versions": {"wshare": __version__, "python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "seed": seed,
        "sha256": hashes,
    }


def _accepted(recipe: dict) -> bool | None:
    """Whether the search confirmed its target on the search images; None of one that was asked for a size."""
    return None if has_given_size(recipe["settings"]) else recipe["on_search_images"]["meets_target"]


def _version(package: str) -> str | None:
    """Version of an installed package; None of one that is not: some are extras."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
