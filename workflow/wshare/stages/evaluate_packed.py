"""Evaluate the packed file, loaded anew, on held-out images: the verdict."""

import platform
import time
from importlib.metadata import version
from pathlib import Path

from wshare import __version__
from wshare.benchmarks import jobs_of, seconds_by_stage
from wshare.images import ImageFile
from wshare.logits import read_logits
from wshare.models import assign, build
from wshare.names import folder_name
from wshare.packing import load_packed
from wshare.scoring import compare, fast, predict, verdict
from wshare.storage import read_json, sha256_file, write_json
from wshare.tables import ANSWERS, write_table

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "h5py", "safetensors", "constriction")


def evaluate_packed(
    settings: dict,
    model: str,
    dataset: str,
    spec: Path,
    packed: Path,
    images: Path,
    baseline: Path,
    recipe: Path,
    sizes: Path,
    benchmarks: Path,
    layers_per_job: int,
    search: str,
    metrics: Path,
    answers: Path,
    threads: int,
) -> None:
    """Write metrics.json, and answers.csv with the classes that both networks give to each image.

    `model`, `dataset` and `search` are names in the configuration.
    """
    started = time.perf_counter()
    description, chosen, size = read_json(spec), read_json(recipe), read_json(sizes)
    sample = ImageFile(images)
    reference = read_logits(baseline, sample)
    network = fast(build(description))
    assign(network, load_packed(packed), str(packed))
    logits = predict(network, sample, threads)
    quality = compare(logits, reference, sample.labels, settings["seed"])
    labels = [""] * len(sample) if sample.labels is None else sample.labels
    rows = zip(sample.keys, labels, reference.argmax(1), logits.argmax(1), strict=True)
    write_table(answers, ANSWERS, [dict(zip(ANSWERS, row, strict=True)) for row in rows])
    octets = size["bytes"]
    jobs = jobs_of([folder_name(layer) for layer in chosen["layers"]], layers_per_job)
    write_json(
        metrics,
        {
            "model": model,
            "search": search,
            "dataset": dataset,
            "quality_target": settings["quality_target"],
            **quality,
            "verdict": verdict(*quality["relative_accuracy_ci95"], settings["quality_target"]),
            "bytes": octets,
            "compression_rate": {
                "on_disk": octets["float32"] / octets["packed"],
                "analytic": 32 * size["weights"] / size["analytic_bits"],
            },
            "bits_per_weight": 8 * octets["packed"] / size["parameters"],
            "format": size["format"],
            "batch_norm": size["batch_norm"],
            "folded_batch_norms": size["folded_batch_norms"],
            "predicted_loss_rank_correlation": chosen.get("predicted_loss_rank_correlation"),
            "evaluations": chosen["evaluations"],
            "images_forwarded": sum(chosen["images_forwarded"].values()),
            "seconds": seconds_by_stage(benchmarks, search, jobs) | {"evaluate_packed": time.perf_counter() - started},
            "versions": {"wshare": __version__, "python": platform.python_version()}
            | {package: version(package) for package in PACKAGES},
            "seed": settings["seed"],
            "sha256": {
                "model": description["sha256"],
                "held_out_images": sample.fingerprint,
                "search_images": chosen["search_images"],
                "recipe": sha256_file(recipe),
                "packed": sha256_file(packed),
            },
        },
    )
