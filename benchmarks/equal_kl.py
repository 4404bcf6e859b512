"""By how much one version's files are smaller than another's at equal divergence: benchmarks/results/equal_kl.csv.

    python benchmarks/equal_kl.py compare <tree before> <tree after> results/lenet5 results/resnet_ds [--search NAME]

A tree is a copy of the repository. Of a study's results, the float32 network, images, weights and calibration
statistics serve both trees, and the slopes of a search by `rate_distortion`, which are multiplied by factors. Each
file's divergence is that on search images, of networks that either half taught and that are scored on the other, and
that on held-out images, of the file loaded anew. Sizes are those on disk. The ratio is that of parabolas through the
logarithms of size and divergence, on average over the divergences that both trees reach.
"""

import argparse
import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["model", "seed", "images", "least_kl", "most_kl", "files", "ratio", "least_ratio", "most_ratio", "measured"]
FACTORS = np.geomspace(0.25, 4, 13)
# Divergences at which the parabolas are compared.
POINTS = 9


def front(tree: Path, base: Path, search: str) -> list[dict]:
    """What `measured_front` gives with the package of a tree, in a process of its own."""
    command = [sys.executable, __file__, "front", str(base), "--search", search]
    environment = os.environ | {"PYTHONPATH": str(tree.resolve() / "workflow")}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout)


def measured_front(base: Path, search: str) -> list[dict]:
    """Bytes and divergences of a file for each factor, of the network with these results."""
    import torch

    from wshare.artifacts.model import read_model
    from wshare.artifacts.outputs import read_outputs
    from wshare.data.images import ImageFile
    from wshare.evaluation.predict import predict
    from wshare.files.sealed import read_json
    from wshare.models.state import load_state
    from wshare.packed.format import load_packed
    from wshare.packed.write import pack_network
    from wshare.search.artifacts import Files, read_artifacts
    from wshare.search.evaluator import Evaluator
    from wshare.search.methods import METHODS
    from wshare.tasks.table import task_of

    torch.set_num_threads(1)
    recipe = json.loads((base / "search" / search / "recipe.json").read_text())
    weights, description = base / "model/weights.safetensors", read_json(base / "model/model.json")
    model, task = read_model(base / "model/model.json", weights), task_of(description)
    images = {split: ImageFile(base / f"images/{split}.h5") for split in ("search", "held_out")}
    reference = {
        split: read_outputs(base / f"baseline/{split}.h5", part, description["sha256"])
        for split, part in images.items()
    }
    entry = METHODS["rate_distortion"]
    files = Files(layer_weights=base / "weights.h5", calibration=base / "calibration.h5")
    made = {"model": description["sha256"], "images": images["search"].fingerprint}
    artifacts = read_artifacts(entry.needs, files, task, model, images["search"], list(recipe["layers"]), made)
    method, settings = entry.load(), recipe["settings"]
    space = method.prepare(artifacts, {"keep_zeros": False} | settings["options"], 1)
    evaluator = Evaluator(
        task, model, images["search"], reference["search"], len(images["held_out"]), settings, threads=1
    )
    rows = []
    for factor in FACTORS:
        layers = copy.deepcopy(recipe["layers"])
        for setting in layers.values():
            del setting["shape"], setting["k"]
            setting["slope"] *= float(factor)
        parts = space.parts(layers, len(images["search"]))
        halves = evaluator.measure(("factor", float(factor)), lambda parts=parts: parts)
        packed, found = copy.deepcopy(model), method.realise(space, layers)
        packing = {"format": "entropy", "batch_norm": "auto"}
        content, *_ = pack_network(task, packed, found, packing, images["search"], reference["search"], 1, 0)
        load_state(packed, load_packed(content), "the packed network")
        outputs = predict(packed, images["held_out"], 1)
        held_out = task.score(outputs, reference["held_out"], images["held_out"].labels).kl
        rows.append({"bytes": len(content), "search": halves["kl"], "held_out": held_out})
    return rows


def compared(before: list[dict], after: list[dict], images: str) -> dict:
    """Size after over size before, at equal divergence."""
    (first, fit), (second, other) = (_parabola(rows, images) for rows in (before, after))
    least, most = max(first.min(), second.min()), min(first.max(), second.max())
    at = np.linspace(least, most, POINTS)
    ratios = np.exp(np.polyval(other, at) - np.polyval(fit, at))
    return {
        "images": images,
        "least_kl": f"{np.exp(least):.5f}",
        "most_kl": f"{np.exp(most):.5f}",
        "files": len(before),
        "ratio": f"{ratios.mean():.4f}",
        "least_ratio": f"{ratios.min():.4f}",
        "most_ratio": f"{ratios.max():.4f}",
    }


def _parabola(rows: list[dict], images: str) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the divergences, and the coefficients of the parabola through those of the bytes."""
    divergences = np.log([row[images] for row in rows])
    return divergences, np.polyfit(divergences, np.log([row["bytes"] for row in rows]), 2)


def compare(before: Path, after: Path, bases: list[Path], search: str) -> list[dict]:
    """A row for each network and split."""
    # In the other process it would bring the package of this tree.
    from gather import measured

    rows = []
    for base in bases:
        seed = json.loads((base / "search" / search / "recipe.json").read_text())["settings"]["seed"]
        fronts = [front(tree, base, search) for tree in (before, after)]
        print(base, *fronts, sep="\n", file=sys.stderr, flush=True)
        for images in ("search", "held_out"):
            rows.append({"model": base.name, "seed": seed} | compared(*fronts, images) | {"measured": measured()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("compare", "front"))
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--search", default="rate_distortion")
    args = parser.parse_args()
    if args.what == "front":
        print(json.dumps(measured_front(*args.folders, args.search)))
    else:
        before, after, *bases = args.folders
        rows = compare(before, after, bases, args.search)
        with (RESULTS / "equal_kl.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
