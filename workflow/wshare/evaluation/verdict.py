"""The verdict on a packed file: what metrics.json says of any run."""

import platform
from importlib.metadata import PackageNotFoundError, version

from wshare.evaluation.intervals import verdict
from wshare.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "h5py", "safetensors", "constriction")


def describe(
    quality: dict,
    target: float,
    sizes: dict,
    recipe: dict,
    seed: int,
    hashes: dict[str, str],
) -> dict:
    """Quality, verdict, sizes, cost and versions of one compressed network.

    `quality` is what `wshare.scoring.compare` returns for the held-out images, `sizes` the content of sizes.json,
    `recipe` that of recipe.json; `hashes` go by what they are of.
    """
    octets = sizes["bytes"]
    return {
        "quality_target": target,
        **quality,
        "verdict": verdict(*quality["relative_quality_ci95"], target),
        "bytes": octets,
        "compression_rate": {
            "on_disk": octets["float32"] / octets["packed"],
            "analytic": 32 * sizes["weights"] / sizes["analytic_bits"],
        },
        "bits_per_weight": 8 * octets["packed"] / sizes["parameters"],
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
