"""What more images are worth: size at equal divergence, by the number of images that calibration looked at.

    python benchmarks/knowledge.py <results folder of a model> ...

Each folder holds a finished search by `rate_distortion` with its search and held-out images. Its layers are quantised
anew at its slope, and on from there until the divergence on the held-out images has crossed 0.05 nats; bits a weight
there are interpolated on its logarithm. They are taught by the statistics of the first 50, 100, 200, ... search images,
and at last by those of all search images and of the held-out ones: no file could be made so, but it tells where more
images lead at best. Importance and sensitivity scales are those of the search. Writes
benchmarks/results/knowledge.csv, a row a folder and number of images; rows of other folders stay.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gather import RESULTS, measured, read
from threadpoolctl import threadpool_limits

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.artifacts.weights import read_fisher
from wshare.calibration.statistics import input_statistics
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json
from wshare.files.tables import write_table
from wshare.models.folding import folded_norms
from wshare.models.layers import replaced
from wshare.quantize.layer import Options
from wshare.quantize.statistics import merged
from wshare.search.rate_distortion.network import Network
from wshare.tasks.table import task_of

COUNTS = (50, 100, 200, 400, 800, 1600)
# Slopes are so far apart.
STEP = 1.4
KL = 0.05
THREADS = 2


def bits_at(kl: float, point: Callable[[float], tuple[float, float]]) -> float:
    """Bits a weight at a divergence, interpolated between the slopes around it.

    `point` gives divergence and bits at a slope, told as a share of the search's.
    """
    share, here = 1.0, point(1.0)
    factor = STEP if here[0] < kl else 1 / STEP
    while True:
        share, before = share * factor, here
        here = point(share)
        if (here[0] < kl) != (before[0] < kl):
            (low, fewer), (high, more) = sorted([before, here])
            return float(np.interp(math.log(kl), np.log([low, high]), [fewer, more]))


def rows_of(folder: Path, search: str, version: str) -> list[dict]:
    """A row for each number of images that the folder has."""
    spec = folder / "model" / "model.json"
    description, recipe = read_json(spec), read_json(folder / "search" / search / "recipe.json")
    model, task = read_model(spec, spec.with_name("weights.safetensors"), torch.device("cpu")), task_of(description)
    images, held_out = (ImageFile(folder / "images" / f"{name}.h5") for name in ("search", "held_out"))
    reference = read_outputs(folder / "baseline" / "held_out.h5", held_out, description["sha256"])
    fisher = {name: value for name, value in read_fisher(folder / "weights.h5").items() if name in recipe["layers"]}
    folded, known, rows, done = folded_norms(model, list(fisher), images.batch(0)[:2]), None, [], 0
    counts = [count for count in COUNTS if count <= len(images)]
    parts = [images.part(first, stop) for first, stop in zip([0, *counts], counts, strict=False)]
    for part, taught_by in [*((part, "search") for part in parts), (held_out, "search and held-out")]:
        more = input_statistics(model, part.batches(), list(fisher), 0)
        known = more if known is None else {name: merged(known[name], more[name]) for name in fisher}
        done += len(part)
        network = Network.of(model, fisher, known, folded)
        weights = sum(layer.weights.size for layer in network.layers.values())

        def point(share: float, network: Network = network, done: int = done) -> tuple[float, float]:
            settings = {name: layer | {"slope": share * layer["slope"]} for name, layer in recipe["layers"].items()}
            compressed = network.compressed(network.quantised(settings, Options(), THREADS))
            with replaced(model, compressed.tensors()):
                outputs = predict(model, held_out, THREADS)
            kl, bits = task.score(outputs, reference, None).kl, compressed.bits / weights  # noqa: B023
            print(f"{folder}: {done} images, {kl:.4f} nats at {bits:.3f} bits", flush=True)
            return kl, bits

        found = bits_at(KL, point)
        rows.append(
            {"model": folder.name, "seed": recipe["settings"]["seed"], "taught_by": taught_by, "images": done}
            | {"bits_per_weight": found, "measured": version}
        )
    return rows


def main() -> None:
    """Measure all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--search", default="rate_distortion_98")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    version = measured()
    with threadpool_limits(1):
        rows = [row for folder in arguments.folders for row in rows_of(folder, arguments.search, version)]
    new, path = {(row["model"], str(row["seed"])) for row in rows}, RESULTS / "knowledge.csv"
    kept = [row for row in read(path) if (row["model"], row["seed"]) not in new]
    write_table(path, list(rows[0]), [*kept, *rows])


if __name__ == "__main__":
    main()
