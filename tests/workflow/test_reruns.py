"""A change reruns what it touches, and no more: the exact jobs that a dry run plans after one edit of a finished run.

The finished run has two models: `tiny`, trained here, with four searches, and `given`, the same network from a file,
with one. Every row is a copy of its folder with one edit. A job is written `<model> <rule> <layer, group or search>`.

A plan ends at a checkpoint that is itself planned: how many layers there will be is not known before `inspect_model`
has run, so that their jobs (`cluster_layer`, `profile_layers`) are in no plan until then. Rows that reach it compare
what is planned at first; `test_plan_behind_the_checkpoint` runs it and compares the rest.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from ..runs import PASSING, ROOT, environment, made_once
from .conftest import command, snakemake

LAYERS = {"tiny": ("depthwise", "pointwise", "fc"), "given": ("conv", "depthwise", "pointwise", "fc")}
SEARCHES = {"tiny": ("rate_distortion", "slope", "two_step", "uniform"), "given": ("uniform",)}
# Rules whose jobs are known only once the layers are.
HIDDEN = ("cluster_layer", "profile_layers")
NOTHING: set[str] = set()


def listings(output: str) -> list[str]:
    """What Snakemake prints about each job that it plans or starts."""
    return re.split(r"^(?=(?:local)?(?:rule|checkpoint) \w+:$)", output, flags=re.MULTILINE)[1:]


def job_of(listing: str) -> str:
    """Name of a listed job."""
    rule = listing.split(":")[0].split()[1]
    listed = re.search(r"^    wildcards: (.+)$", listing, flags=re.MULTILINE)
    wildcards = dict(pair.split("=") for pair in listed[1].split(", ")) if listed else {}
    return " ".join(filter(None, [wildcards.pop("model", ""), rule, *wildcards.values()]))


def jobs_of(output: str) -> set[str]:
    """All listed jobs but the target, which makes no file."""
    return {job_of(listing) for listing in listings(output)} - {"compress"}


def planned(folder: Path, *arguments: str) -> set[str]:
    """Jobs that a dry run plans."""
    run = snakemake(folder, "--dry-run", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return jobs_of(run.stdout)


# What a change starts, from the last stage to the first: each set holds all that lies below it.


def reported(model: str) -> set[str]:
    return {f"{model} report_model", "report_study", "summarise"}


def evaluated(model: str, *searches: str) -> set[str]:
    return {f"{model} evaluate_packed {search}" for search in searches} | reported(model)


def packed(model: str, *searches: str) -> set[str]:
    return {f"{model} pack_model {search}" for search in searches} | evaluated(model, *searches)


def searched(model: str, *searches: str) -> set[str]:
    return {f"{model} search {search}" for search in searches} | packed(model, *searches)


def by_calibration(model: str) -> set[str]:
    """The searches that read calibration statistics, and no clusters."""
    return searched(model, "rate_distortion") if "rate_distortion" in SEARCHES[model] else NOTHING


def by_clusters(model: str) -> set[str]:
    return searched(model, *(search for search in SEARCHES[model] if search != "rate_distortion"))


def profiled(model: str, *groups: int) -> set[str]:
    return (
        {f"{model} profile_layers {group}" for group in groups} | {f"{model} gather_sensitivity"} | by_clusters(model)
    )


def clustered(model: str, *layers: str) -> set[str]:
    # Two layers a group.
    groups = {LAYERS[model].index(layer) // 2 for layer in layers}
    return {f"{model} cluster_layer {layer}" for layer in layers} | profiled(model, *groups)


def reclustered(model: str) -> set[str]:
    return clustered(model, *LAYERS[model])


def reprofiled(model: str) -> set[str]:
    # Two layers a group.
    return profiled(model, *range(-(-len(LAYERS[model]) // 2)))


def repacked(model: str) -> set[str]:
    return packed(model, *SEARCHES[model])


def researched(model: str) -> set[str]:
    return searched(model, *SEARCHES[model])


def reevaluated(model: str) -> set[str]:
    return evaluated(model, *SEARCHES[model])


def measured(model: str) -> set[str]:
    return {f"{model} measure_inputs"} | by_calibration(model) if by_calibration(model) else NOTHING


def extracted(model: str) -> set[str]:
    return {f"{model} extract_weights"} | reclustered(model) | by_calibration(model)


def baseline(model: str) -> set[str]:
    return {f"{model} evaluate_dense"} | reprofiled(model) | by_calibration(model)


def prepared(model: str) -> set[str]:
    return {f"{model} prepare_images"} | baseline(model) | extracted(model) | measured(model)


def inspected(model: str) -> set[str]:
    return {f"{model} inspect_model"} | reclustered(model) | measured(model)


def made(model: str) -> set[str]:
    """Everything of a model."""
    rule = "train_model" if model == "tiny" else "fetch_model"
    return {f"{model} {rule}", f"{model} inspect_model"} | prepared(model)


def both(change: Callable[[str], set[str]]) -> set[str]:
    """What a change starts in both models."""
    return change("tiny") | change("given")


def known(jobs: set[str]) -> set[str]:
    """Those that a plan shows while a model's layers are not known, without weights that only clustering reads."""
    unread = {f"{model} extract_weights" for model in LAYERS if not by_calibration(model)}
    return {job for job in jobs - unread if not any(f" {rule} " in job for rule in HIDDEN)}


# Edits: of the configuration by keys, of its text, of files.


def sets(*paths_and_values: Any) -> Callable[[Path], None]:
    """Set keys of the configuration, each a path followed by its value; None takes the key out."""

    def edit(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        for path, value in zip(paths_and_values[::2], paths_and_values[1::2], strict=True):
            *levels, last = path.split(".")
            entry = config
            for level in levels:
                entry = entry.setdefault(level, {})
            if value is None:
                del entry[last]
            else:
                entry[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    return edit


def dataset_renamed(folder: Path) -> None:
    dataset = yaml.safe_load((folder / "config.yaml").read_text())["datasets"]["pictures"]
    sets("datasets.pictures", None, "datasets.drawings", dataset, "models.given.dataset", "drawings")(folder)


def search_renamed(folder: Path) -> None:
    search = yaml.safe_load((folder / "config.yaml").read_text())["searches"]["slope"]
    sets("searches.slope", None, "searches.steep", search)(folder)


def reordered_and_commented(folder: Path) -> None:
    def turned(value: Any) -> Any:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    config = turned(yaml.safe_load((folder / "config.yaml").read_text()))
    text = yaml.safe_dump(config, sort_keys=False, indent=6, default_flow_style=False)
    (folder / "config.yaml").write_text("# Another comment.\n\n" + text.replace("\n", "  # and one more\n\n"))


def own_code(folder: Path) -> Path:
    """A copy of the project that may be edited, in place of the link to it; the folder of its package."""
    (folder / "project").unlink(missing_ok=True)
    for name in ("workflow", "envs", "profiles"):
        shutil.copytree(ROOT / name, folder / "project" / name, symlinks=True, ignore=PASSING)
    shutil.copy2(ROOT / "Snakefile", folder / "project")
    return folder / "project" / "workflow" / "wshare"


def code(module: str) -> Callable[[Path], None]:
    """Add a byte to a module."""

    def edit(folder: Path) -> None:
        with (own_code(folder) / module).open("a") as file:
            file.write("\n")

    return edit


def old_code(folder: Path) -> None:
    """A module of another release, unpacked from an archive with the time of its making."""
    module = own_code(folder) / "quantize" / "kmeans.py"
    module.write_text(module.read_text() + "\n")
    os.utime(module, (1e9, 1e9))


def checked_out(folder: Path) -> None:
    for file in own_code(folder).parent.rglob("*"):
        os.utime(file)


def replaced(folder: Path) -> None:
    """Another file under the name of the model's weights, older than every result: `mv` and `cp -p` keep times."""
    shutil.copy(folder / "other.safetensors", folder / "given.safetensors")
    os.utime(folder / "given.safetensors", (1e9, 1e9))


def touched(folder: Path) -> None:
    os.utime(folder / "given.safetensors")


def untouched(folder: Path) -> None:
    pass


# The rows of the table of docs/configuration.md: for each what is edited, how, and the jobs that are planned.
ROWS = {
    "`seed`": [("seed of everything", sets("seed", 1), known(made("tiny")) | prepared("given"))],
    "`image_folder`": [("folder of images", sets("image_folder", "elsewhere"), prepared("given"))],
    "any key of `datasets.<dataset>`": [
        ("held-out images of a trained model", sets("datasets.digits.split.held_out", 0.3), prepared("tiny")),
        ("training images", sets("datasets.digits.split.train", 600), known(made("tiny"))),
        (
            "sizes of two splits swapped",
            sets("datasets.pictures.split.search", 500, "datasets.pictures.split.held_out", 600),
            prepared("given"),
        ),
    ],
    "`datasets.<dataset>.calibration`": [
        (
            "images for calibration",
            sets("datasets.digits.calibration", {"source": "mnist"}),
            {"tiny prepare_calibration"} | measured("tiny"),
        ),
    ],
    "`models.<model>.dataset`": [
        ("another dataset", sets("models.given.dataset", "digits"), prepared("given")),
        ("dataset under another name", dataset_renamed, evaluated("given", "uniform")),
    ],
    "`models.<model>.` `task`, `quality`, `architecture`, `arguments`, `preprocessing`, and `training` for source "
    "`train`": [("epochs", sets("models.tiny.training.epochs", 9), known(made("tiny")))],
    "`models.<model>.` `task`, `quality`, `source`, `architecture`, `weights`, `url`, `path`, `sha256`, `classes`, "
    "`arguments`, "
    "`preprocessing` for the other sources": [
        ("mean of images", sets("models.given.preprocessing.mean", [0.5]), known(made("given")))
    ],
    "the content of the file at `models.<model>.path`": [
        ("another file of the same name, older", replaced, known(made("given"))),
        ("the same file, touched", touched, NOTHING),
    ],
    "`models.<model>.layers.` `include`, `exclude`": [
        (
            "a layer left out",
            sets("models.tiny.layers.exclude", ["conv", "fc"]),
            known(inspected("tiny") | extracted("tiny")),
        )
    ],
    "`models.<model>.layers.overrides`": [
        ("one layer", sets("models.tiny.layers.overrides.depthwise.k_max", 16), clustered("tiny", "depthwise")),
        (
            "numbers of shared values at which one layer is profiled",
            sets("models.tiny.layers.overrides.depthwise.candidates", [2, 8]),
            clustered("tiny", "depthwise"),
        ),
        ("a layer that had none", sets("models.tiny.layers.overrides.fc", {"k_max": 16}), clustered("tiny", "fc")),
    ],
    "any key of `clustering`": [
        (
            "k_max, which one layer overrides",
            sets("clustering.k_max", 48),
            clustered("tiny", "pointwise", "fc") | reclustered("given"),
        ),
        ("bins, which none overrides", sets("clustering.bins", 8192), both(reclustered)),
    ],
    "`importance.images`": [("images for the importance", sets("importance.images", 17), both(extracted))],
    "`sensitivity.images`": [("images of a probe", sets("sensitivity.images", 100), both(reprofiled))],
    "`sensitivity.layers_per_job`": [
        ("three layers a job", sets("sensitivity.layers_per_job", 3), profiled("tiny", 0) | reprofiled("given"))
    ],
    "`searches.<search>.` `method`, `confidence`, `options`": [
        ("method", sets("searches.slope.method", "greedy"), searched("tiny", "slope")),
        ("confidence", sets("searches.slope.confidence", 0.6), searched("tiny", "slope")),
        ("budget", sets("searches.slope.options.evaluations", 7), searched("tiny", "slope")),
        ("seed of one search", sets("searches.two_step.options.seed", 1), searched("tiny", "two_step")),
        (
            "two options swapped",
            sets("searches.two_step.options.samples", 8, "searches.two_step.options.population", 6),
            searched("tiny", "two_step"),
        ),
        ("slopes measured", sets("searches.rate_distortion.options.evaluations", 4), by_calibration("tiny")),
        ("divergence allowed", sets("searches.rate_distortion.options.max_kl", 0.1), by_calibration("tiny")),
        ("probes", sets("searches.rate_distortion.options.probe_images", 0), by_calibration("tiny")),
    ],
    "`searches.<search>.quality_target`": [
        ("target", sets("searches.slope.quality_target", 0.8), searched("tiny", "slope")),
        (
            "targets of two searches swapped",
            sets("searches.slope.quality_target", 0.85, "searches.two_step.quality_target", 0.9),
            searched("tiny", "slope", "two_step"),
        ),
    ],
    "`calibration.images`": [
        ("images for calibration", sets("calibration.images", 100), measured("tiny") | reported("given"))
    ],
    "`packing.format`": [
        (
            "coding of indices",
            sets("packing.format", "entropy"),
            # The search by rate_distortion has a format of its own.
            searched("tiny", "slope", "two_step", "uniform") | searched("given", "uniform"),
        )
    ],
    "`packing.batch_norm`": [("type of batch norm", sets("packing.batch_norm", "float32"), both(researched))],
    "a new model or search, `models.<model>.searches`": [
        (
            "a search beside the others",
            sets("searches.second", {"method": "slope", "quality_target": 0.85}),
            searched("tiny", "second"),
        ),
        (
            "one more search for a model",
            sets("models.given.searches", ["uniform", "slope"]),
            searched("given", "slope"),
        ),
    ],
    "a model or search taken out": [
        ("no second model", sets("models.given", None), {"report_study", "summarise"}),
        ("one search less", sets("searches.slope", None), reported("tiny")),
    ],
    "a model or search renamed": [("a search renamed", search_renamed, searched("tiny", "steep"))],
    "any key that bears on a model's results": [
        (
            "confidence of a search of both",
            sets("searches.uniform.confidence", 0.6),
            searched("tiny", "uniform") | searched("given", "uniform"),
        )
    ],
    "comments, the order of keys (but for patterns in `overrides`), threads, memory, the profile": [
        ("comments, white space, order of keys", reordered_and_commented, NOTHING),
        ("the whole project copied elsewhere", untouched, NOTHING),
    ],
    "a source file of wshare": [
        ("clustering code", code("quantize/kmeans.py"), both(reclustered) | by_calibration("tiny")),
        ("clustering code with an old date", old_code, both(reclustered) | by_calibration("tiny")),
        ("sensitivity code", code("calibration/sensitivity.py"), both(reprofiled)),
        ("code of the task", code("tasks/classification.py"), both(lambda model: known(made(model)))),
        ("code of one search method", code("search/by_k/slope.py"), searched("tiny", "slope")),
        ("code of the search by slope", code("search/rate_distortion/search.py"), by_calibration("tiny")),
        ("code of error feedback", code("quantize/error_feedback.py"), by_calibration("tiny")),
        ("packing code", code("packed/write.py"), both(repacked)),
        ("verdict code", code("stages/evaluate_packed.py"), both(reevaluated)),
        ("summary code", code("stages/summarise.py"), {"summarise"}),
        ("code of one source of models", code("models/sources/file.py"), known(made("given"))),
        ("all code checked out anew, unchanged", checked_out, NOTHING),
    ],
}
CASES = [case for cases in ROWS.values() for case in cases]


@pytest.fixture(scope="module")
def second_model(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[str]]:
    """A finished run with a second model beside the first; its planned jobs, and those that ran."""
    root = made_once(tmp_path_factory, "reruns", lambda root: run_second_model(study, root))
    before, ran = json.loads((root / "jobs.json").read_text())
    return root / "finished", set(before), set(ran)


def run_second_model(study: Path, root: Path) -> None:
    pictures = root / "pictures"
    digits = load_digits()
    for position, (pixels, label) in enumerate(zip(digits.images[:1100], digits.target[:1100], strict=True)):
        folder = pictures / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(folder / f"{position}.png")
    folder = copy(study, root / "finished")
    shutil.copy(folder / "results/tiny/model/weights.safetensors", folder / "given.safetensors")
    shutil.copy(folder / "results/tiny/search/uniform/dense.safetensors", folder / "other.safetensors")
    model = {
        "source": "file",
        "architecture": "python:wshare.models.zoo:tiny",
        "path": "given.safetensors",
        "dataset": "pictures",
        "searches": ["uniform"],
        "preprocessing": {"channels": 1, "crop": 8},
    }
    dataset = {"source": "imagefolder", "class_map": "sorted", "split": {"search": 600, "held_out": 500}}
    sets("image_folder", str(pictures), "datasets.pictures", dataset, "models.given", model)(folder)
    sets("searches.two_step.quality_target", 0.85)(folder)
    before = planned(folder)
    run = snakemake(folder, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    (root / "jobs.json").write_text(json.dumps([sorted(before), sorted(jobs_of(run.stdout + run.stderr))]))


@pytest.fixture
def finished(second_model: tuple, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return copy(second_model[0], tmp_path / "copy")


def copy(folder: Path, to: Path) -> Path:
    """Copy of a folder with all times, and with the link to the project as a link."""
    return shutil.copytree(folder, to, symlinks=True)


@pytest.mark.parametrize(("edit", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_change_plans_exactly(finished: Path, edit: Callable[[Path], None], expected: set[str]):
    edit(finished)
    assert planned(finished) == expected


def test_threads_memory_and_gpus_plan_nothing(finished: Path):
    rules = ("evaluate_dense", "search", "pack_model", "evaluate_packed", "cluster_layer")
    threads = [f"{rule}=3" for rule in rules]
    measuring = ("extract_weights", "measure_inputs", "profile_layers")
    memory = [f"{rule}:{resource}" for rule in rules + measuring for resource in ("mem_mb=9000", "gpu=1")]
    assert planned(finished, "--cores", "7", "--set-threads", *threads, "--set-resources", *memory) == NOTHING


def test_each_row_of_the_manual_is_tested():
    section = (ROOT / "docs" / "configuration.md").read_text().partition("## What reruns when a key changes")[2]
    table = section.partition("\n## ")[0].partition("|---|---|---|\n")[2].partition("\n\n")[0]
    assert {line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()} == set(ROWS)


def test_a_model_beside_a_finished_one_runs_alone(second_model: tuple[Path, set[str], set[str]]):
    _, before, ran = second_model
    # The toy's second edit, another target for one search, is a row of its own.
    beside = searched("tiny", "two_step")
    assert before == known(made("given")) | beside
    assert ran == made("given") | beside


def test_plan_behind_the_checkpoint(finished: Path):
    """Another file of the same name: once `inspect_model` has run, the plan holds all the rest, and nothing twice."""
    replaced(finished)
    run = snakemake(finished, "--cores", "2", "--until", "inspect_model")
    assert run.returncode == 0, run.stdout + run.stderr
    first = {"given fetch_model", "given inspect_model"}
    assert jobs_of(run.stdout + run.stderr) == first
    assert planned(finished) == made("given") - first


def test_an_interrupted_run_goes_on_where_it_was(finished: Path):
    sets("clustering.k_max", 48)(finished)
    before = planned(finished)
    run = subprocess.Popen(
        command(finished, "--cores", "1"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = ""
    for line in run.stdout:
        output += line
        # The third job is under way when everything is killed at once.
        if len(listings(output)) == 3:
            break
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    first, second, _ = listings(output)
    assert planned(finished) == before - {job_of(first), job_of(second)}
