"""Evaluate the packed file, loaded anew, on held-out images: the verdict."""

import time
from pathlib import Path

from wshare.benchmarks import seconds_by_stage
from wshare.images import ImageFile
from wshare.logits import read_logits
from wshare.metrics import describe
from wshare.models import assign, build
from wshare.names import folder_name
from wshare.packing import load_packed
from wshare.scoring import compare, fast, predict
from wshare.storage import read_json, sha256_file, write_json


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
    threads: int,
) -> None:
    """Write metrics.json; `model`, `dataset` and `search` are names in the configuration."""
    started = time.perf_counter()
    description, chosen, size = read_json(spec), read_json(recipe), read_json(sizes)
    sample = ImageFile(images)
    reference = read_logits(baseline, sample)
    network = fast(build(description))
    assign(network, load_packed(packed), str(packed))
    quality = compare(predict(network, sample, threads), reference, sample.labels, settings["seed"])
    jobs = {
        "cluster_layer": [folder_name(layer) for layer in chosen["layers"]],
        "profile_layers": [str(group) for group in range(-(-len(chosen["layers"]) // layers_per_job))],
    }
    seconds = seconds_by_stage(benchmarks, search, jobs) | {"evaluate_packed": time.perf_counter() - started}
    hashes = {
        "model": description["sha256"],
        "held_out_images": sample.fingerprint,
        "search_images": chosen["search_images"],
        "recipe": sha256_file(recipe),
        "packed": sha256_file(packed),
    }
    found = describe(quality, settings["quality_target"], size, chosen, seconds, settings["seed"], hashes)
    write_json(metrics, {"model": model, "search": search, "dataset": dataset, **found})
