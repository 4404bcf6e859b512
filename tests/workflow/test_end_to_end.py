"""Every stage of a finished run: its files, and the arithmetic of the verdict."""

import csv
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import h5py
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from wshare.artifacts.front import layer_columns
from wshare.config.validation import complete
from wshare.files.hdf5 import get_text
from wshare.files.tables import read_sealed

from .conftest import CONFIG, ROOT, snakemake
from .test_reruns import jobs_of

STUDY = complete(yaml.safe_load(CONFIG.read_text()))
# Those that choose a number of shared values for each layer.
SEARCHES = tuple(name for name in STUDY["searches"] if name != "rate_distortion")
LAYERS = ("depthwise", "pointwise", "fc")
SPLIT = STUDY["datasets"]["digits"]["split"]
HELD_OUT = int(SPLIT["held_out"] * len(load_digits().target))


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_model_is_described_and_hashed(study: Path):
    model = study / "results/tiny/model"
    spec = read(model / "model.json")
    assert spec["sha256"] == sha256(model / "weights.safetensors")
    assert spec["input"] == [1, 8, 8]
    assert spec["classes"] == 10


def test_every_parameter_is_listed_once(study: Path):
    table = read(study / "results/tiny/model/layers.json")
    names = [parameter["name"] for parameter in table["parameters"]]
    stored = load_file(study / "results/tiny/model/weights.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sorted(names) == sorted(name for name in stored if not name.endswith(buffers))
    assert [layer["name"] for layer in table["layers"]] == list(LAYERS)
    reasons = {parameter["name"]: parameter["reason"] for parameter in table["parameters"]}
    assert reasons["conv.weight"] == "named in models.tiny.layers.exclude"


def test_splits_are_disjoint_and_in_random_order(study: Path):
    keys, counts = {}, {}
    for split in ("search", "held_out"):
        with h5py.File(study / f"results/tiny/images/{split}.h5") as file:
            keys[split] = list(file["keys"].asstr())
            counts[split] = np.bincount(file["labels"][:], minlength=10)
            assert file["images"].shape[1:] == (1, 8, 8)
            assert file["images"].dtype == np.uint8
    assert [len(keys[split]) for split in ("search", "held_out")] == [SPLIT["search"], HELD_OUT]
    assert not set(keys["search"]) & set(keys["held_out"])
    assert keys["search"] != sorted(keys["search"], key=int)
    # Of each label as near to its share as whole numbers can be: the digits have 1,797 images.
    share = SPLIT["search"] / 1797 * np.bincount(load_digits().target)
    assert (np.abs(counts["search"] - share) < 1).all()
    assert counts["held_out"].max() - counts["held_out"].min() <= 5


def test_weights_file_holds_weight_and_importance(study: Path):
    weights = load_file(study / "results/tiny/model/weights.safetensors")
    with h5py.File(study / "results/tiny/weights.h5") as file:
        assert set(file) == set(LAYERS)
        for layer in LAYERS:
            assert np.array_equal(file[layer]["weight"], weights[f"{layer}.weight"])
            importance = file[layer]["importance"][:]
            assert importance.shape == weights[f"{layer}.weight"].shape
            assert (importance >= 0).all()
            assert importance.any()
        made_from = json.loads(get_text(file.attrs, "made_from"))
        assert made_from["model"] == sha256(study / "results/tiny/model/weights.safetensors")


def test_override_of_one_layer_reaches_it_alone(study: Path):
    lengths = {}
    for layer in LAYERS:
        with h5py.File(study / f"results/tiny/layers/{layer}/clusters.h5") as file:
            inertia = file["inertia"][:]
            lengths[layer] = len(inertia)
            assert (np.diff(inertia) <= 0).all()
    overrides = STUDY["models"]["tiny"]["layers"]["overrides"]
    assert lengths == {layer: overrides.get(layer, STUDY["clustering"])["k_max"] for layer in LAYERS}


def test_sensitivity_has_a_row_for_each_layer_and_candidate(study: Path):
    rows, _ = read_sealed(study / "results/tiny/sensitivity.csv")
    assert [(row["layer"], int(row["k"])) for row in rows] == [
        (layer, k) for layer in LAYERS for k in STUDY["clustering"]["candidates"]
    ]
    assert all(float(row["kl"]) >= 0 for row in rows)


@pytest.mark.parametrize("search", SEARCHES)
def test_front_has_one_chosen_row_that_is_the_recipe(study: Path, search: str):
    folder = study / "results/tiny/search" / search
    rows, _ = read_sealed(folder / "front.csv")
    recipe = read(folder / "recipe.json")
    (chosen,) = [row for row in rows if row["chosen"] == "1"]
    assert layer_columns(chosen) == {
        layer: "dense" if entry["k"] is None else str(entry["k"]) for layer, entry in recipe["layers"].items()
    }
    assert len(rows) == recipe["evaluations"]
    met = [row for row in rows if float(row["low"]) >= 0.9]
    assert not met or chosen == min(met, key=lambda row: int(row["bits"]))


@pytest.fixture(scope="module")
def decoded(study: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of each tensor of each search's packed file, from one new process that decodes them."""
    program = (
        "import hashlib, json, sys, wshare\n"
        "states = [wshare.load_packed(path) for path in sys.argv[1:]]\n"
        "digests = [{n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in s.items()} for s in states]\n"
        "print(json.dumps(digests))\n"
    )
    paths = [str(study / "results/tiny/search" / search / "packed.safetensors") for search in SEARCHES]
    command = [sys.executable, "-c", program, *paths]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "workflow")}
    )
    return dict(zip(SEARCHES, json.loads(run.stdout), strict=True))


@pytest.mark.parametrize("search", SEARCHES)
def test_packed_file_decodes_to_the_recipe_in_a_new_process(study: Path, decoded: dict, search: str):
    folder = study / "results/tiny/search" / search
    dense = load_file(folder / "dense.safetensors")
    assert decoded[search] == {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in dense.items()}
    original = load_file(study / "results/tiny/model/weights.safetensors")
    for layer, entry in read(folder / "recipe.json")["layers"].items():
        weight, shared = original[f"{layer}.weight"], dense[f"{layer}.weight"]
        if entry["k"] is None:
            assert np.array_equal(weight, shared)
            continue
        values = np.unique(shared)
        assert len(values) <= entry["k"]
        nearest = np.abs(weight[..., None] - values).min(-1)
        np.testing.assert_allclose(np.abs(weight - shared), nearest, rtol=0, atol=1e-7)
    assert np.array_equal(original["conv.weight"], dense["conv.weight"])


@pytest.mark.parametrize("search", SEARCHES)
def test_metrics_are_the_arithmetic_of_the_files(study: Path, search: str):
    folder = study / "results/tiny/search" / search
    metrics, nbytes = read(folder / "metrics.json"), read(folder / "metrics.json")["bytes"]
    on_search, baseline = read(folder / "recipe.json")["on_search_images"], study / "results/tiny/baseline/metrics.json"
    assert {metrics["measure"], on_search["measure"], read(baseline)["measure"]} == {"accuracy"}
    packed = folder / "packed.safetensors"
    assert nbytes["packed"] == packed.stat().st_size
    assert nbytes["float32"] == (study / "results/tiny/model/weights.safetensors").stat().st_size
    parts = ("indices", "codebooks", "scales", "shifts", "kept", "header")
    assert nbytes["packed"] == sum(nbytes[part] for part in parts)
    assert nbytes["header"] <= 1000
    recipe = read(folder / "recipe.json")["layers"]
    weights = {layer: math.prod(entry["shape"]) for layer, entry in recipe.items()}
    bits = {
        layer: 32 * weights[layer]
        if entry["k"] is None
        else math.ceil(math.log2(entry["k"])) * weights[layer] + 32 * entry["k"]
        for layer, entry in recipe.items()
    }
    rate = metrics["compression_rate"]
    assert rate["analytic"] == pytest.approx(32 * sum(weights.values()) / sum(bits.values()))
    assert rate["on_disk"] == pytest.approx(nbytes["float32"] / nbytes["packed"])
    share, (low, high) = metrics["relative_quality"], metrics["relative_quality_ci95"]
    assert share == pytest.approx(metrics["compressed"]["top1"] / metrics["float32"]["top1"])
    assert low <= share <= high
    expected = "met" if low >= 0.9 else "missed" if high < 0.9 else "undecided"
    assert metrics["verdict"] == expected
    assert metrics["float32"]["images"] == metrics["compressed"]["images"] == HELD_OUT
    assert metrics["sha256"]["recipe"] == sha256(folder / "recipe.json")
    timings = read(folder / "timings.json")
    assert timings["sha256"]["packed"] == sha256(packed)
    assert timings["seconds"]["search"] > 0


def test_rate_distortion_shares_layers_at_one_slope(study: Path):
    folder = study / "results/tiny/search/rate_distortion"
    metrics, recipe = read(folder / "metrics.json"), read(folder / "recipe.json")
    assert metrics["format"] == "entropy"
    assert metrics["folded_batch_norms"] == 2
    assert set(recipe["layers"]) == set(LAYERS)
    losses, _ = read_sealed(folder / "losses.csv")
    assert [row["layer"] for row in losses] == list(LAYERS)
    front, _ = read_sealed(folder / "front.csv")
    budget = STUDY["searches"]["rate_distortion"]["options"]["evaluations"]
    assert len(front) == metrics["evaluations"] <= budget
    slopes = {float(row["slope"]): float(row["bits"]) for row in front}
    # Only the ends are compared: error feedback lets the bits of slopes between them change places by a little.
    assert slopes[min(slopes)] > slopes[max(slopes)]
    (chosen,) = (row for row in front if row["chosen"] == "1")
    assert {layer["slope"] for layer in recipe["layers"].values()} == {float(chosen["slope"])}
    assert recipe["on_search_images"]["meets_target"]
    # The file is made with what both halves tell, the row with one of them.
    assert metrics["compression_rate"]["analytic"] > 0.8 * float(chosen["compression_rate_analytic"])
    others = [read(study / "results/tiny/search" / search / "metrics.json") for search in SEARCHES]
    assert metrics["bytes"]["packed"] < min(other["bytes"]["packed"] for other in others)


def test_baseline_equals_an_evaluation_by_hand(study: Path):
    with h5py.File(study / "results/tiny/images/held_out.h5") as file:
        labels = file["labels"][:]
    with h5py.File(study / "results/tiny/baseline/held_out.h5") as file:
        top1 = float((file["outputs"][:].argmax(1) == labels).mean())
    assert read(study / "results/tiny/search/slope/metrics.json")["float32"]["top1"] == pytest.approx(top1)


def test_run_ends_with_a_block_for_the_model(study: Path):
    text = (study / "terminal.txt").read_text()
    assert (study / "results/summary.txt").read_text() in text
    for search in SEARCHES:
        assert f"{search}: " in text
    assert "on disk" in text
    assert len(list(csv.DictReader((study / "results/summary.csv").open()))) == len(STUDY["searches"])


def test_snakemake_gathers_the_reports_in_one_archive(study: Path, tmp_path: Path):
    run = snakemake(study, "--report", str(tmp_path / "report.zip"))
    assert run.returncode == 0, run.stdout + run.stderr
    with ZipFile(tmp_path / "report.zip") as archive:
        contents = {archive.read(name) for name in archive.namelist()}
        page = archive.read("report/report.html").decode()
    results = study / "results"
    shown = [results / "summary.csv", results / "report/index.html", results / "tiny/report/index.html"]
    shown += (results / "tiny/report/figures").rglob("*.svg")
    assert len(shown) > 3 * len(SEARCHES)
    assert [path for path in shown if path.read_bytes() not in contents] == []
    # The landing text, categories, labels and captions.
    for words in ("compressed by weight sharing without retraining", '"Study"', '"Models"', '"Figures"'):
        assert words in page
    for words in ("the whole report", "Everything about tiny", "All models and searches on one page"):
        assert words in page


def test_every_job_leaves_log_and_benchmark(study: Path):
    logs, benchmarks = (
        {path.relative_to(study / folder).with_suffix("") for path in (study / folder).rglob(f"*{suffix}")}
        for folder, suffix in (("results/tiny/logs", ".log"), ("results/tiny/benchmarks", ".tsv"))
    )
    assert logs == benchmarks
    jobs = [job for job in jobs_of((study / "terminal.txt").read_text()) if job.startswith("tiny ")]
    assert len(logs) == len(jobs)


def test_second_run_has_nothing_to_do(study: Path):
    run = snakemake(study, "--cores", "2")
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout + run.stderr


def test_workflow_folder_is_an_entry_too(study: Path):
    run = snakemake(study, "--dry-run", snakefile="workflow/Snakefile")
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout + run.stderr
