"""The verdict on a packed file: what metrics.json says of any run."""

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from wshare.evaluation.intervals import margin, relative_quality, verdict
from wshare.tasks.task import Task, own_figures
from wshare.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "h5py", "safetensors", "constriction")


def compare(task: Task, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, seed: int) -> dict:
    """Quality before and after compression as metrics.json gives it; arrays as for the task's `score`."""
    before, after = (task.score(array, reference, labels) for array in (reference, outputs))
    share, low, high = relative_quality(after.correct, before.correct, seed)
    expected, half_width = after.expected, margin(after.expected_error)
    alone = [figure.key for figure in own_figures(task)]
    compared = [figure.key for figure in task.FIGURES if figure.compares]
    images = {"images": len(outputs)}
    return {
        "measure": task.measure(labels),
        "float32": {key: before.figures[key] for key in alone} | images,
        "compressed": {key: after.figures[key] for key in alone}
        | images
        | {"kl": after.kl}
        | {key: after.figures[key] for key in compared},
        "relative_quality": share,
        "relative_quality_ci95": [low, high],
        "expected_relative_quality": expected,
        "expected_relative_quality_ci95": [expected - half_width, expected + half_width],
    }


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
        "verdict": verdict(*quality["relative_quality_ci95"], target),
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
        "images_forwarded": sum(recipe["images_forwarded"].values()),
        "versions": {"wshare": __version__, "python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "seed": seed,
        "sha256": hashes,
    }


def _version(package: str) -> str | None:
    """Version of an installed package; None of one that is not: some are extras."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
