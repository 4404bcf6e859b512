"""Results of a small made-up network, as a finished run leaves them: what the tests of the reports read.

    PYTHONPATH=workflow python tests/unit/report/made_up.py <folder>

writes them and their reports below a folder, for the tests in a browser.
"""

import sys
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from wshare.artifacts.sensitivity import columns
from wshare.data.stored import write_images
from wshare.evaluation.verdict import compare, describe
from wshare.files.sealed import sha256_file, write_json
from wshare.files.tables import write_sealed
from wshare.packed.format import BatchNorm, FoldedNorm, write_packed
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.quantize.cost import layer_bits
from wshare.report.results import ModelReportFiles
from wshare.stages.report_model import report_model
from wshare.stages.report_study import report_study
from wshare.tasks.table import task
from wshare.tasks.task import Task

MODEL = "made_up"
METHODS = ("rate_distortion", "slope", "milp", "greedy", "two_step", "uniform")
# A name that a page must escape, as a module may have it.
LAYERS = {"stem.<conv>": (16, 3, 3, 3), "depthwise": (16, 1, 3, 3), "fc": (10, 16)}
IMAGES, CLASSES = 60, 10
TARGET = 0.9
RULES = ("fetch_model", "inspect_model", "prepare_images", "evaluate_dense", "extract_weights")
PARTS = ("search", "pack_model", "evaluate_packed")
MADE = {"recipe": "recipe.json", "packed": "packed.safetensors"}
QUALITY = ("relative_quality", "low", "expected", "expected_low", "kl", "kl_high")
LOSSES = ["layer", "weights", "predicted", "measured", "sensitivity_scale"]
CLUSTERS = {f"clusters of {name}": "1" * 64 for name in LAYERS}


def write_results(
    folder: Path,
    methods: tuple[str, ...] = METHODS,
    labels: bool = True,
    skipped: int = 0,
    dense: bool = False,
    layers: dict[str, tuple[int, ...]] = LAYERS,
    task_name: str = "classification",
) -> Path:
    """Write `folder`/results/made_up with a search of each method, named after it; returns that folder.

    Without `labels`, quality is agreement; `skipped` held-out images were unreadable. If `dense`, the searches share
    no layer. `layers` are the shapes of the layers' weights.
    """
    root, rng, kind = folder / "results" / MODEL, np.random.default_rng(0), task(task_name)
    weights = {f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in layers.items()}
    norm = {
        "norm.weight": rng.uniform(0.5, 2, 16).astype(np.float32),
        "norm.bias": rng.normal(0, 1, 16).astype(np.float32),
        "norm.running_mean": rng.normal(0, 1, 16).astype(np.float32),
        "norm.running_var": rng.uniform(0.5, 2, 16).astype(np.float32),
    }
    state = weights | norm | {"fc.bias": np.zeros(10, np.float32)}
    (root / "model").mkdir(parents=True)
    save_file(state, root / "model" / "weights.safetensors")
    parameters = sum(array.size for name, array in state.items() if "running" not in name)
    spec = {"name": MODEL, "task": task_name, "parameters": parameters, "origin": "made up"}
    spec["sha256"] = sha256_file(root / "model" / "weights.safetensors")
    write_json(root / "model" / "model.json", spec)
    write_json(root / "model" / "layers.json", {"model": spec["sha256"]} | _layers(layers))
    pixels = rng.integers(0, 256, (IMAGES, 3, 16, 16), dtype=np.uint8)
    classes = rng.integers(CLASSES, size=IMAGES) if labels else None
    keys = [f"<{i}>.png" for i in range(IMAGES)]
    look = {"mean": [0.5] * 3, "std": [0.5] * 3}
    images = write_images(root / "images" / "held_out.h5", pixels, classes, keys, look, {}, 9)
    hashes = {"model": spec["sha256"], "search_images": "0" * 64, "held_out_images": images}
    # The float32 network is right on most images, if anything is right.
    reference = (
        np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=IMAGES) if classes is None else classes] * 4
    )
    reference[:6] = np.roll(reference[:6], 1, axis=1)
    for rule in RULES:
        _benchmark(root / "benchmarks" / f"{rule}.tsv", rng)
    made_up = MadeUp(root, task_name, layers, state, reference, classes, keys, hashes, dense)
    for number, method in enumerate(methods):
        outputs = reference + rng.normal(0, 0.4 + 0.35 * number, reference.shape).astype(np.float32)
        _write_search(made_up, method, outputs, rng)
    found = kind.score(reference, reference, classes).figures
    baseline = {figure.key: found[figure.key] for figure in kind.FIGURES if not figure.compares} | {"images": IMAGES}
    write_json(
        root / "baseline" / "metrics.json",
        {"published": None, "measure": kind.measure(classes), "sha256": hashes}
        | {"search": baseline | {"skipped": 0}, "held_out": baseline | {"skipped": skipped}},
    )
    if set(methods) - {"rate_distortion"}:
        write_sealed(
            root / "sensitivity.csv",
            columns(kind.PROFILED),
            _sensitivity(kind, layers, rng),
            _searched(hashes) | CLUSTERS,
        )
    return root


def report_files(root: Path, methods: tuple[str, ...] | None = None) -> ModelReportFiles:
    """All files that the report of `write_results` shows, of all its searches in order of their names or of some."""
    names = methods or sorted(path.name for path in (root / "search").iterdir())

    def each(file: str) -> list[Path]:
        return [root / "search" / name / file for name in names]

    sensitivity = root / "sensitivity.csv"
    return ModelReportFiles(
        spec=root / "model" / "model.json",
        weights=root / "model" / "weights.safetensors",
        layers=root / "model" / "layers.json",
        held_out_images=root / "images" / "held_out.h5",
        baseline=root / "baseline" / "metrics.json",
        metrics=each("metrics.json"),
        timings=each("timings.json"),
        recipes=each("recipe.json"),
        sizes=each("sizes.json"),
        fronts=each("front.csv"),
        losses=each("losses.csv"),
        predictions=each("predictions.csv"),
        packed=each("packed.safetensors"),
        benchmarks=sorted((root / "benchmarks").rglob("*.tsv")),
        sensitivity=sensitivity if sensitivity.exists() else None,
    )


def write_reports(folder: Path, drawn: bool = False) -> None:
    """Write the reports of results that `write_results` made, without their figures unless those are `drawn`."""
    root = folder / "results" / MODEL
    files, report = report_files(root), root / "report"
    study = folder / "results" / "report"
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            for stage in ("report_model", "report_study"):
                patch.setattr(f"wshare.stages.{stage}.write_figures", lambda *_: None)
        report_model({"models": {MODEL: {}}}, MODEL, files, report / "index.html", report / "figures")
        report_study(files.metrics, study / "index.html", study / "figures")


def _layers(shapes: dict[str, tuple[int, ...]]) -> dict:
    layers = [
        {
            "name": name,
            "folder": name,
            "type": "Linear" if len(shape) == 2 else "Conv2d",
            "shape": list(shape),
            "groups": 16 if name == "depthwise" else 1,
            "weights": int(np.prod(shape)),
        }
        for name, shape in shapes.items()
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


@dataclass(frozen=True)
class MadeUp:
    """What all searches of the made-up network share; the fields are those of `write_results`."""

    root: Path
    task_name: str
    layers: dict[str, tuple[int, ...]]
    state: dict[str, np.ndarray]
    reference: np.ndarray
    labels: np.ndarray | None
    keys: list[str]
    hashes: dict[str, str]
    dense: bool

    def ks(self, method: str) -> dict[str, int]:
        """Number of shared values of each layer, as the search chose them."""
        return {name: 8 if method == "uniform" else k for name, k in zip(self.layers, cycle((16, 8, 4)))}


def _write_search(made_up: MadeUp, method: str, outputs: np.ndarray, rng: np.random.Generator) -> None:
    """Files of one search."""
    folder, by_slope = made_up.root / "search" / method, method == "rate_distortion"
    folder.mkdir(parents=True)
    kind, hashes, searched = task(made_up.task_name), made_up.hashes, _searched(made_up.hashes)
    sizes = _write_packed(made_up, method, folder)
    front = _front(made_up, method, sizes["analytic_bits"])
    write_sealed(folder / "front.csv", list(front[0]), front, searched)
    rows = [(name, 9, 10.0 ** -(i + 2), 10.0 ** -(i + 2.2), 0.6) for i, name in enumerate(made_up.layers)]
    losses = [dict(zip(LOSSES, row, strict=True)) for row in rows if by_slope]
    write_sealed(folder / "losses.csv", LOSSES, losses, searched)
    (chosen,) = (row for row in front if row["chosen"])
    recipe = {
        "task": made_up.task_name,
        "model": {"name": MODEL, "sha256": hashes["model"]},
        "search_images": hashes["search_images"],
        "settings": {"method": method, "quality_target": TARGET, "options": {}},
        "packing": {"format": sizes["format"], "batch_norm": "auto"},
        "made_from": {"weights.h5": "2" * 64, "calibration.h5": "3" * 64} if by_slope else CLUSTERS,
        "layers": {name: {"shape": list(shape)} for name, shape in made_up.layers.items()},
        "on_search_images": {key: chosen[key] for key in ("images", *kind.COLUMNS, *QUALITY)}
        | {"meets_target": bool(chosen["met"])},
        "evaluations": len(front),
        "images_forwarded": {"search": 240},
    }
    recipe |= {"predicted_loss_rank_correlation": 1.0} if by_slope else {}
    write_json(folder / "recipe.json", recipe)
    made = {name: sha256_file(folder / file) for name, file in MADE.items()}
    write_json(folder / "sizes.json", sizes | made)
    told, rows = kind.predictions(outputs, made_up.reference, made_up.labels, made_up.keys)
    shown = {"packed": made["packed"], "images": hashes["held_out_images"]}
    write_sealed(folder / "predictions.csv", told, rows, shown)
    for rule in PARTS:
        _benchmark(made_up.root / "benchmarks" / "search" / method / f"{rule}.tsv", rng)
    quality = compare(kind, outputs, made_up.reference, made_up.labels)
    found = describe(quality, TARGET, sizes, recipe, 0, hashes | made)
    write_json(folder / "metrics.json", {"model": MODEL, "search": method, "dataset": "made-up images"} | found)
    seconds = dict.fromkeys((*RULES, *PARTS), 1.5)
    write_json(folder / "timings.json", {"seconds": seconds, "sha256": {"packed": made["packed"]}})


def _write_packed(made_up: MadeUp, method: str, folder: Path) -> dict:
    """Write the packed file; returns the content of sizes.json, but for hashes."""
    by_slope, state, ks = method == "rate_distortion", made_up.state, made_up.ks(method)
    folds = by_slope and "depthwise" in made_up.layers
    shared, norms, folded = {}, {}, {}
    for name, k in ks.items():
        weight = state[f"{name}.weight"]
        codebook = np.quantile(weight, (np.arange(k) + 0.5) / k).astype(np.float32)
        exponents = np.arange(16, dtype=np.int16) if folds and name == "depthwise" else None
        if not made_up.dense:
            shared[f"{name}.weight"] = Shared(codebook, nearest_indices(weight, codebook), exponents)
    if folds:
        folded["norm"] = FoldedNorm("depthwise.weight", np.arange(16, dtype=np.int32), 0.01, 1e-5, True)
    else:
        norms["norm"] = BatchNorm(state["norm.weight"], state["norm.bias"], 1e-5, True)
    form = "entropy" if by_slope else "fixed"
    parts = write_packed(folder / "packed.safetensors", state, shared, norms, folded, {}, form)
    weights = {name: int(np.prod(shape)) for name, shape in made_up.layers.items()}
    return {
        "bytes": {"float32": (made_up.root / "model" / "weights.safetensors").stat().st_size} | parts,
        "format": form,
        "batch_norm": "float32",
        "folded_batch_norms": len(folded),
        "analytic_bits": sum(layer_bits(weights[name], k) for name, k in ks.items()),
        "weights": sum(weights.values()),
        "parameters": sum(array.size for name, array in state.items() if "running" not in name),
    }


def _front(made_up: MadeUp, method: str, bits: int) -> list[dict]:
    """Rows of front.csv, of which the second is the chosen one; they were measured in another order than by size."""
    quality = {"expected": 0.96, "expected_low": 0.955, "kl": 0.05, "kl_high": 0.06}
    return [
        {
            "evaluation": evaluation,
            "bits": bits * 2**change,
            "compression_rate_analytic": 6 / 2**change,
            "images": 400,
            **dict.fromkeys(task(made_up.task_name).COLUMNS, 0.8),
            "relative_quality": 0.9 + 0.02 * number,
            "low": 0.87 + 0.02 * number,
            **quality,
            "met": 1,
            "pareto": 1,
            "chosen": int(change == 0),
            **({"slope": 0.1 / 2**change} if method == "rate_distortion" else {}),
            **{f"k:{name}": "dense" if made_up.dense else k + number - 1 for name, k in made_up.ks(method).items()},
        }
        for number, (change, evaluation) in enumerate(zip((-1, 0, 1, 2), (1, 4, 3, 2), strict=True))
    ]


def _sensitivity(kind: Task, layers: dict[str, tuple[int, ...]], rng: np.random.Generator) -> list[dict]:
    rows = []
    for name in layers:
        for k in (2, 4, 8, 16):
            kl = float(rng.uniform(0.5, 2) / k**2)
            row = {"layer": name, "k": k, "inertia": kl, "weighted_inertia": kl, "images": IMAGES}
            rows.append(row | dict.fromkeys(kind.PROFILED, 0.9) | {"kl": kl})
    return rows


def _benchmark(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\n{rng.uniform(1, 90):.2f}\t0:00:01\t{rng.uniform(300, 900):.2f}\n")


if __name__ == "__main__":
    write_results(Path(sys.argv[1]))
    write_reports(Path(sys.argv[1]), drawn=True)
