"""Results of a small made-up network, as a finished run leaves them: what the tests of the reports read.

    PYTHONPATH=workflow python tests/unit/report/made_up.py <folder>

writes them and their reports below a folder, for the tests in a browser.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from wshare.calibration.sensitivity import COLUMNS
from wshare.data.images import write_images
from wshare.evaluation.intervals import verdict
from wshare.files.journal import Journal
from wshare.files.sealed import sha256_file, write_json
from wshare.files.tables import PREDICTIONS, write_sealed
from wshare.packed.format import BatchNorm, FoldedNorm, write_packed
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.quantize.cost import layer_bits
from wshare.stages.report_model import report_model
from wshare.stages.report_study import report_study
from wshare.stages.search import FRONT
from wshare.stages.search_rate_distortion import FRONT as PRICES
from wshare.stages.search_rate_distortion import LOSSES
from wshare.tasks.classification import compare

MODEL = "made_up"
METHODS = ("rate_distortion", "slope", "milp", "greedy", "two_step", "uniform")
# A name that a page must escape, as a module may have it.
LAYERS = {"stem.<conv>": (16, 3, 3, 3), "depthwise": (16, 1, 3, 3), "fc": (10, 16)}
IMAGES, CLASSES = 60, 10
TARGET = 0.9
RULES = ("fetch_model", "inspect_model", "prepare_images", "evaluate_dense", "extract_weights")
PARTS = ("search", "pack_model", "evaluate_packed")
MADE = {"recipe": "recipe.json", "packed": "packed.safetensors"}
PRICE_PARTS = ("search_rate_distortion", "pack_rate_distortion", "evaluate_packed")
CLUSTERS = {f"clusters of {name}": "1" * 64 for name in LAYERS}


def write_results(
    folder: Path, methods: tuple[str, ...] = METHODS, labels: bool = True, skipped: int = 0, dense: bool = False
) -> Path:
    """Write `folder`/results/made_up with a search of each method, named after it; returns that folder.

    Without `labels`, quality is agreement; `skipped` held-out images were unreadable. If `dense`, the recipes share
    no layer.
    """
    root, rng = folder / "results" / MODEL, np.random.default_rng(0)
    weights = {f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in LAYERS.items()}
    norm = {
        "norm.weight": rng.uniform(0.5, 2, 16).astype(np.float32),
        "norm.bias": rng.normal(0, 1, 16).astype(np.float32),
        "norm.running_mean": rng.normal(0, 1, 16).astype(np.float32),
        "norm.running_var": rng.uniform(0.5, 2, 16).astype(np.float32),
    }
    state = weights | norm | {"fc.bias": np.zeros(10, np.float32)}
    (root / "model").mkdir(parents=True)
    save_file(state, root / "model" / "weights.safetensors")
    spec = {"name": MODEL, "parameters": 778, "origin": "made up"}
    spec["sha256"] = sha256_file(root / "model" / "weights.safetensors")
    write_json(root / "model" / "model.json", spec)
    write_json(root / "model" / "layers.json", {"model": spec["sha256"]} | _layers())
    pixels = rng.integers(0, 256, (IMAGES, 3, 16, 16), dtype=np.uint8)
    answers = rng.integers(CLASSES, size=IMAGES) if labels else None
    keys = [f"<{i}>.png" for i in range(IMAGES)]
    look = {"mean": [0.5] * 3, "std": [0.5] * 3}
    images = write_images(root / "images" / "held_out.h5", pixels, answers, keys, look, {})
    hashes = {"model": spec["sha256"], "search_images": "0" * 64, "held_out_images": images}
    # The float32 network is right on most images, if there is a right answer.
    reference = (
        np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=IMAGES) if answers is None else answers] * 4
    )
    reference[:6] = np.roll(reference[:6], 1, axis=1)
    for rule in RULES:
        _benchmark(root / "benchmarks" / f"{rule}.tsv", rng)
    found = []
    for number, method in enumerate(methods):
        logits = reference + rng.normal(0, 0.4 + 0.35 * number, reference.shape).astype(np.float32)
        found.append(_write_search(root, method, state, logits, reference, answers, keys, rng, hashes, dense))
    baseline = found[0]["float32"] | {"loss": 0.5}
    measure = found[0]["measure"]
    write_json(
        root / "baseline" / "metrics.json",
        {"published": None, "measure": measure, "sha256": hashes}
        | {"search": baseline | {"skipped": 0}, "held_out": baseline | {"skipped": skipped}},
    )
    if set(methods) - {"rate_distortion"}:
        write_sealed(root / "sensitivity.csv", COLUMNS, _sensitivity(rng), _searched(hashes) | CLUSTERS)
    return root


def write_reports(folder: Path) -> None:
    """Write the reports of results that `write_results` made."""
    metrics = sorted((folder / "results" / MODEL / "search").glob("*/metrics.json"))
    report = folder / "results" / MODEL / "report"
    report_model({"models": {MODEL: {}}}, MODEL, metrics, 16, report / "index.html", report / "figures")
    study = folder / "results" / "report"
    report_study(metrics, study / "index.html", study / "figures")


def _layers() -> dict:
    layers = [
        {
            "name": name,
            "folder": name,
            "type": "Linear" if len(shape) == 2 else "Conv2d",
            "shape": list(shape),
            "groups": 16 if name == "depthwise" else 1,
            "weights": int(np.prod(shape)),
        }
        for name, shape in LAYERS.items()
    ]
    parameters = [
        {
            "name": f"{layer['name']}.weight",
            "shape": layer["shape"],
            "status": "shared",
            "reason": "weight",
            "aliases": [],
        }
        for layer in layers
    ]
    kept = {"norm.weight": "batch norm: one scale a channel", "norm.bias": "batch norm: one scale a channel"}
    kept["fc.bias"] = "bias: few values"
    parameters += [
        {"name": name, "shape": [16], "status": "kept", "reason": reason, "aliases": []}
        for name, reason in kept.items()
    ]
    return {"layers": layers, "parameters": parameters, "dropped": []}


def _searched(hashes: dict[str, str]) -> dict[str, str]:
    return {"model": hashes["model"], "images": hashes["search_images"]}


def _write_search(root, method, state, logits, reference, labels, keys, rng, hashes, dense) -> dict:
    """Files of one search; returns its metrics."""
    folder, prices = root / "search" / method, method == "rate_distortion"
    ks = dict(zip(LAYERS, (16, 8, 4), strict=True))
    shared, norms, folded = {}, {}, {}
    for name, k in ks.items():
        weight = state[f"{name}.weight"]
        codebook = np.quantile(weight, (np.arange(k) + 0.5) / k).astype(np.float32)
        exponents = np.arange(16, dtype=np.int16) if prices and name == "depthwise" else None
        shared[f"{name}.weight"] = Shared(codebook, nearest_indices(weight, codebook), exponents)
    if prices:
        folded["norm"] = FoldedNorm("depthwise.weight", np.arange(16, dtype=np.int32), 0.01, 1e-5, True)
    else:
        norms["norm"] = BatchNorm(state["norm.weight"], state["norm.bias"], 1e-5, True)
    folder.mkdir(parents=True)
    form = "entropy" if prices else "fixed"
    parts = write_packed(folder / "packed.safetensors", state, shared, norms, folded, {}, form)
    octets = {"float32": (root / "model" / "weights.safetensors").stat().st_size} | parts
    bits = sum(layer_bits(int(np.prod(LAYERS[name])), k) for name, k in ks.items())
    sizes = {"bytes": octets, "format": form, "analytic_bits": bits, "weights": 736, "parameters": 778}
    quality = compare(logits, reference, labels, 0)
    on_search = {
        "top1": 0.8,
        "relative_quality": 0.95,
        "low": 0.93,
        "expected": 0.96,
        "expected_low": 0.955,
        "images": 400,
        "kl": 0.05,
        "kl_high": 0.06,
        "agreement": 0.9,
    }
    rows = []
    for number, change in enumerate((-1, 0, 1, 2)):
        row = on_search | {
            "bits": bits * 2**change,
            "compression_rate_analytic": 6 / 2**change,
            "chosen": int(change == 0),
        }
        row |= {"relative_quality": 0.9 + 0.02 * number, "low": 0.87 + 0.02 * number, "slope": 0.1 / 2**change}
        row["pareto"] = 1
        rows.append(
            {key: row[key] for key in (PRICES if prices else FRONT)} | {name: k + number - 1 for name, k in ks.items()}
        )
    write_sealed(folder / "front.csv", (PRICES if prices else FRONT) + list(ks), rows, _searched(hashes))
    # Measured in another order than that of size.
    with Journal(folder / "journal.jsonl", {}) as journal:
        for row in reversed(rows[1:] + rows[:1]):
            journal.append(("slope", row["slope"]) if prices else tuple(row[name] for name in ks), {})
    if prices:
        losses = [
            dict(zip(LOSSES, (name, 9, 10.0 ** -(i + 2), 10.0 ** -(i + 2.2), 0.6), strict=True))
            for i, name in enumerate(ks)
        ]
        write_sealed(folder / "losses.csv", LOSSES, losses, _searched(hashes))
    correlation = 1.0 if prices else None
    write_json(
        folder / "recipe.json",
        {
            "settings": {"method": method, "quality_target": TARGET},
            "made_from": {"weights.h5": "2" * 64, "calibration.h5": "3" * 64} if prices else CLUSTERS,
            "layers": {name: {"shape": list(LAYERS[name]), "k": None if dense else k} for name, k in ks.items()},
            "on_search_images": on_search,
            "predicted_loss_rank_correlation": correlation,
        },
    )
    made = {name: sha256_file(folder / file) for name, file in MADE.items()}
    write_json(folder / "sizes.json", sizes | made)
    labelled = [""] * IMAGES if labels is None else labels
    table = zip(keys, labelled, reference.argmax(1), logits.argmax(1), strict=True)
    told = [dict(zip(PREDICTIONS, row, strict=True)) for row in table]
    write_sealed(
        folder / "predictions.csv", PREDICTIONS, told, {"packed": made["packed"], "images": hashes["held_out_images"]}
    )
    for rule in PRICE_PARTS if prices else PARTS:
        _benchmark(root / "benchmarks" / "search" / method / f"{rule}.tsv", rng)
    metrics = {
        "model": MODEL,
        "search": method,
        "dataset": "made-up images",
        "quality_target": TARGET,
        **quality,
        "verdict": verdict(*quality["relative_quality_ci95"], TARGET),
        "bytes": octets,
        "compression_rate": {"on_disk": octets["float32"] / octets["packed"], "analytic": 32 * 736 / bits},
        "bits_per_weight": 8 * octets["packed"] / 778,
        "predicted_loss_rank_correlation": correlation,
        "evaluations": len(rows),
        "images_forwarded": 240,
        "seconds": {},
        "versions": {"wshare": "0.1.0", "python": "3.11"},
        "seed": 0,
        "sha256": hashes | made,
    }
    write_json(folder / "metrics.json", metrics)
    return metrics


def _sensitivity(rng: np.random.Generator) -> list[dict]:
    rows = []
    for name in LAYERS:
        for k in (2, 4, 8, 16):
            kl = float(rng.uniform(0.5, 2) / k**2)
            row = {"layer": name, "k": k, "inertia": kl, "weighted_inertia": kl, "top1": 0.8, "relative_quality": 0.9}
            rows.append(row | {"loss": 0.5, "kl": kl, "agreement": 0.9, "images": IMAGES})
    return rows


def _benchmark(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\n{rng.uniform(1, 90):.2f}\t0:00:01\t{rng.uniform(300, 900):.2f}\n")


if __name__ == "__main__":
    write_results(Path(sys.argv[1]))
    write_reports(Path(sys.argv[1]))
