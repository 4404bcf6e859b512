"""Every stage on a network of random weights, called in this process by the flags that the rules give it."""

import json
from pathlib import Path

import torch
from torch import nn

from wshare.artifacts.model import write_model
from wshare.cli import main
from wshare.config.validation import complete
from wshare.files.atomic import write_text
from wshare.models import zoo as networks
from wshare.models.description import Fetched
from wshare.search.methods import METHODS

from ..rules import settings_of_stage

LAYERS = ("depthwise", "pointwise")
CONFIG = complete(
    {
        # So few that the labels cannot tell that its weights are random.
        "datasets": {
            "digits": {
                "source": "digits",
                "split": {"search": 25, "held_out": 24},
                "calibration": {"source": "python", "function": "tests.faults.networks:further"},
            }
        },
        "models": {
            "m": {
                "source": "file",
                "architecture": "python:mynet:build",
                "path": "weights.pth",
                "dataset": "digits",
                "layers": {"include": ["re:(?!(conv|fc)$).*"]},
            }
        },
        "searches": {
            "rd": {
                "method": "rate_distortion",
                "quality_target": 0.1,
                "confidence": None,
                "options": {"evaluations": 2, "probe_images": 4},
            },
            "slope": {"method": "slope", "quality_target": 0.1, "confidence": None, "options": {"evaluations": 3}},
        },
        "importance": {"images": 8},
        "clustering": {"k_max": 16, "candidates": [2, 8]},
    }
)
R = "results/m"
MODEL = {"spec": f"{R}/model/model.json", "weights": f"{R}/model/weights.safetensors"}
CLUSTERS = [f"{R}/layers/{layer}/clusters.h5" for layer in LAYERS]
# What methods read, beside clusters, by the names of flags.
FILES = {
    "layer_weights": f"{R}/weights.h5",
    "calibration": f"{R}/calibration.h5",
    "sensitivity": f"{R}/sensitivity.csv",
}


def layers() -> list[str]:
    """Layers of the network that lies there, in its order."""
    path = Path(f"{R}/model/layers.json")
    return [layer["name"] for layer in json.loads(path.read_text())["layers"]] if path.exists() else []


def clusters() -> list[str]:
    """Files of the clusters of those layers."""
    return [f"{R}/layers/{layer}/clusters.h5" for layer in layers()]


def searched(search: str) -> dict:
    """Files of one search by the names of flags."""
    names = ("recipe.json", "packed.safetensors", "dense.safetensors", "sizes.json", "front.csv", "losses.csv")
    names += ("predictions.csv", "metrics.json", "timings.json", "journal.jsonl")
    return {name.partition(".")[0]: f"{R}/search/{search}/{name}" for name in names}


def needed(search: str, stage: str = "search") -> dict:
    """Flags of the files that a search, or the packing of what it found, goes by."""
    method = METHODS[CONFIG["searches"][search]["method"]]
    names = method.needs if stage == "search" else method.realised_from
    # layers.json may be the damaged file: it is read for those alone that go by clusters.
    return {name: clusters() if name == "clusters" else FILES[name] for name in names}


def flags(stage: str, item: str = "") -> tuple[dict, dict]:
    """Flags that name what a stage reads, and those that name what it writes; `item` is its layer or search."""
    own = searched(item)
    images = {"search_images": f"{R}/images/search.h5"}
    held_out = {"held_out_images": f"{R}/images/held_out.h5"}
    further = {"calibration_images": f"{R}/images/calibration.h5"}
    outputs = {"search_outputs": f"{R}/baseline/search.h5"}
    listed, baseline = {"layers": f"{R}/model/layers.json"}, f"{R}/baseline/metrics.json"
    threads, gpus = {"threads": 1}, {"gpus": 0}
    # Only for stages that need them: layers.json may be the damaged file.
    needs = needed(item, stage) if stage in ("search", "pack_model") else {}
    more = further if "calibration" in needs else {}
    benchmarks = {"benchmarks": f"{R}/benchmarks/search/{item}/search.tsv"}

    def some(*names: str) -> dict:
        return {name: own[name] for name in names}

    def several(*searches: str, **names: str) -> dict:
        return {flag: [searched(search)[name] for search in searches] for flag, name in names.items()}

    table = {
        "prepare_images": lambda: ({"spec": MODEL["spec"]}, images | held_out),
        "prepare_calibration": lambda: ({"spec": MODEL["spec"]} | images | held_out, further),
        "evaluate_dense": lambda: (
            MODEL | images | held_out | threads | gpus,
            outputs | {"held_out_outputs": f"{R}/baseline/held_out.h5", "baseline": baseline},
        ),
        "inspect_model": lambda: (MODEL | {"model": "m"}, listed),
        "extract_weights": lambda: (MODEL | listed | images | gpus | threads, {"layer_weights": f"{R}/weights.h5"}),
        "measure_inputs": lambda: (
            MODEL | listed | images | further | gpus | threads,
            {"calibration": f"{R}/calibration.h5"},
        ),
        "cluster_layer": lambda: (
            {"layer": item, "layer_weights": f"{R}/weights.h5"},
            {"clusters": f"{R}/layers/{item}/clusters.h5"},
        ),
        "profile_layers": lambda: (
            MODEL | images | outputs | {"clusters": clusters()} | gpus,
            {"table": f"{R}/sensitivity/0.csv"},
        ),
        "gather_sensitivity": lambda: (
            {"tables": [f"{R}/sensitivity/0.csv"]},
            {"sensitivity": f"{R}/sensitivity.csv"},
        ),
        "search": lambda: (
            MODEL | listed | images | more | outputs | needs | {"code": "code"} | some("journal") | threads | gpus,
            some("front", "losses", "recipe"),
        ),
        "pack_model": lambda: (
            MODEL | listed | images | outputs | needs | some("recipe") | threads,
            some("packed", "dense", "sizes"),
        ),
        "evaluate_packed": lambda: (
            {"model": "m", "search": item, "dataset": "digits", "spec": MODEL["spec"]}
            | held_out
            | {"held_out_outputs": f"{R}/baseline/held_out.h5"}
            | some("packed", "recipe", "sizes")
            | benchmarks
            | threads
            | gpus,
            some("predictions", "metrics", "timings"),
        ),
        "summarise": lambda: (
            several("slope", "rd", metrics="metrics", timings="timings", recipes="recipe")
            | {"baselines": [baseline, baseline]},
            {"summary": "results/summary.txt", "summary_table": "results/summary.csv"},
        ),
        "report_model": lambda: (
            # The page holds all that the figures show.
            {"model": "m", **MODEL, **listed, **held_out, **benchmarks, "baseline": baseline}
            | several(item, metrics="metrics", timings="timings", recipes="recipe", sizes="sizes", fronts="front")
            | several(item, losses="losses", predictions="predictions", packed="packed")
            | ({"sensitivity": f"{R}/sensitivity.csv"} if item == "slope" else {})
            | {"figures": f"{R}/report/{item}/figures"},
            {"page": f"{R}/report/{item}/index.html"},
        ),
    }
    return table[stage]()


WITHOUT_SETTINGS = ("evaluate_dense", "gather_sensitivity", "pack_model", "summarise")


def run(stage: str, item: str = "") -> int:
    """Exit code of a stage, called in the folder of the study."""
    given, made = flags(stage, item)
    arguments = [stage]
    if stage not in WITHOUT_SETTINGS:
        arguments += ["--settings", settings_of_stage(CONFIG, stage, "m", item)]
    for name, value in (given | made).items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return main(arguments)


CHAIN = (
    *(
        ("prepare_images", ""),
        ("prepare_calibration", ""),
        ("evaluate_dense", ""),
        ("inspect_model", ""),
        ("extract_weights", ""),
    ),
    *(("measure_inputs", ""), ("cluster_layer", None), ("profile_layers", ""), ("gather_sensitivity", "")),
    *(("search", "slope"), ("search", "rd"), ("pack_model", "slope"), ("pack_model", "rd")),
    *(("evaluate_packed", "slope"), ("evaluate_packed", "rd"), ("summarise", "")),
)


def write_network(module: nn.Module | None = None, function: str = "tiny") -> None:
    """The model's two files, below the working directory; `function` of tests.faults.networks builds it again."""
    if module is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = networks.tiny().eval()
        # Sure of its predictions, so that sharing its weights makes a difference.
        module.fc.weight.data *= 30
    embedded = {"kind": "embedded", "name": "tiny", "arguments": {"classes": 10}}
    own = {"kind": "python", "name": f"tests.faults.networks:{function}", "arguments": {}}
    spec = {
        "name": function,
        "builder": embedded if function == "tiny" else own,
        "dropped": [],
        "input": [1, 8, 8],
        "task": "classification",
        "classes": 10,
        "published": None,
        "origin": "random weights",
        "preprocessing": {"channels": 1, "resize": None, "crop": 8, "interpolation": "bilinear"}
        | {"mean": [0.5], "std": [0.25]},
    }
    write_model(Fetched(module, spec), Path(MODEL["weights"]), Path(MODEL["spec"]))


def run_all(module: nn.Module | None = None, function: str = "tiny") -> None:
    """Every stage in order, below the working directory."""
    write_network(module, function)
    for search in ("slope", "rd"):
        write_text(f"{R}/benchmarks/search/{search}/search.tsv", "s\tmax_rss\n1.0\t2.0\n")
    for stage, item in CHAIN:
        for each in layers() if item is None else [item]:
            assert run(stage, each) == 0, (stage, each)
