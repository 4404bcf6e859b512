"""Evaluate the packed file, loaded anew, on held-out images: the verdict."""

import time
from pathlib import Path

from wshare.artifacts.outputs import read_outputs
from wshare.artifacts.timings import jobs_of, seconds_by_stage
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.evaluation.verdict import describe
from wshare.files.sealed import check_origin, read_json, sha256_file, write_json
from wshare.files.tables import PREDICTIONS, write_sealed
from wshare.models.registry import build
from wshare.models.state import fast, load_state
from wshare.names import folder_name
from wshare.packed.format import load_packed
from wshare.tasks.classification import compare


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
    predictions: Path,
    threads: int,
    gpus: int,
) -> None:
    """Write metrics.json, and predictions.csv with the classes that both networks give to each image.

    `model`, `dataset` and `search` are names in the configuration. `layers_per_job` is 0 for a search that went by no
    clusters and no profile.
    """
    started = time.perf_counter()
    description, chosen, size = read_json(spec), read_json(recipe), read_json(sizes)
    check_origin(recipe, {"model": chosen["model"]["sha256"]}, {"model": description["sha256"]})
    sample = ImageFile(images)
    hashes = {"recipe": sha256_file(recipe), "packed": sha256_file(packed)}
    state = load_packed(packed)
    check_origin(sizes, size, hashes)
    reference = read_outputs(baseline, sample, description["sha256"])
    device = device_of(gpus)
    network = fast(build(description), device)
    load_state(network, state, str(packed))
    logits = predict(network, placed(sample, device), threads)
    quality = compare(logits, reference, sample.labels, settings["seed"])
    labels = [""] * len(sample) if sample.labels is None else sample.labels
    rows = zip(sample.keys, labels, reference.argmax(1), logits.argmax(1), strict=True)
    listed = [dict(zip(PREDICTIONS, row, strict=True)) for row in rows]
    write_sealed(predictions, PREDICTIONS, listed, {"packed": hashes["packed"], "images": sample.fingerprint})
    jobs = jobs_of([folder_name(layer) for layer in chosen["layers"]], layers_per_job)
    seconds = seconds_by_stage(benchmarks, search, jobs) | {"evaluate_packed": time.perf_counter() - started}
    hashes |= {
        "model": description["sha256"],
        "held_out_images": sample.fingerprint,
        "search_images": chosen["search_images"],
    }
    found = describe(quality, settings["quality_target"], size, chosen, seconds, settings["seed"], hashes)
    write_json(metrics, {"model": model, "search": search, "dataset": dataset, **found})
