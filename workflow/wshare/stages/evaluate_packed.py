"""Evaluate the packed file, loaded anew, on held-out images: the verdict."""

import time
from dataclasses import asdict
from pathlib import Path

from wshare.artifacts.model import check_description
from wshare.artifacts.outputs import read_outputs
from wshare.artifacts.timings import seconds_by_stage
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.evaluation.verdict import compare, describe
from wshare.files.sealed import check_origin, read_json, sha256_file, write_json
from wshare.files.tables import write_sealed
from wshare.models.outputs import with_logits
from wshare.models.registry import build
from wshare.models.state import fast, load_state
from wshare.packed.format import load_packed
from wshare.stages.arguments import CompressedFiles, Machine, Names, Verdict
from wshare.tasks.table import task_of


def evaluate_packed(
    settings: dict,
    names: Names,
    spec: Path,
    compressed: CompressedFiles,
    held_out_images: Path,
    held_out_outputs: Path,
    benchmarks: list[Path],
    written: Verdict,
    machine: Machine,
) -> None:
    """Write metrics.json, predictions.csv with what both networks predict of each image, and timings.json.

    `benchmarks` are Snakemake's of the jobs that led to the packed file: those that there are tell their seconds.
    """
    started = time.perf_counter()
    description, chosen, size = read_json(spec), read_json(compressed.recipe), read_json(compressed.sizes)
    check_description(description, spec, ("sha256", "task", "builder", "dropped"))
    # Another file in the recipe's place tells of no model.
    searched = chosen.get("model", {}).get("sha256")
    check_origin(compressed.recipe, {"model": searched}, {"model": description["sha256"]})
    sample, kind = ImageFile(held_out_images), task_of(description)
    hashes = {"recipe": sha256_file(compressed.recipe), "packed": sha256_file(compressed.packed)}
    state = load_packed(compressed.packed)
    check_origin(compressed.sizes, size, hashes)
    reference = read_outputs(held_out_outputs, sample, description["sha256"])
    device = device_of(machine.gpus)
    network = with_logits(fast(build(description), device), description)
    load_state(network, state, str(compressed.packed))
    outputs = predict(network, placed(sample, device), machine.threads)
    hashes |= {
        "model": description["sha256"],
        "held_out_images": sample.fingerprint,
        "search_images": chosen["search_images"],
    }
    quality = compare(kind, outputs, reference, sample.labels, chosen["temperature"])
    found = describe(quality, settings["quality_target"], size, chosen, settings["seed"], hashes)
    columns, rows = kind.predictions(outputs, reference, sample.labels, sample.keys)
    write_sealed(written.predictions, columns, rows, {"packed": hashes["packed"], "images": sample.fingerprint})
    write_json(written.metrics, asdict(names) | found)
    seconds = seconds_by_stage(benchmarks) | {"evaluate_packed": time.perf_counter() - started}
    write_json(written.timings, {"seconds": seconds, "sha256": {"packed": hashes["packed"]}})
