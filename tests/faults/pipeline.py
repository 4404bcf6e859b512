"""Every stage on a network of random weights, called in this process by the flags that the rules give it."""

import json
from pathlib import Path

import torch
from torch import nn

from wshare.artifacts.model import write_model
from wshare.cli import main
from wshare.config.slices import stage_settings
from wshare.config.validation import complete
from wshare.files.atomic import write_text
from wshare.models import zoo as networks
from wshare.models.description import Fetched

LAYERS = ("depthwise", "pointwise")
CONFIG = complete(
    {
        "datasets": {"digits": {"source": "digits", "split": {"search": 48, "held_out": 24}}},
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


def layers() -> list[str]:
    """Layers of the network that lies there, in its order."""
    path = Path(f"{R}/model/layers.json")
    return [layer["name"] for layer in json.loads(path.read_text())["layers"]] if path.exists() else []


def searched(search: str) -> dict:
    """Files of one search by the names of flags."""
    names = ("recipe.json", "packed.safetensors", "dense.safetensors", "sizes.json", "front.csv")
    names += ("predictions.csv", "metrics.json")
    files = {name.partition(".")[0]: f"{R}/search/{search}/{name}" for name in names}
    return files | {"journal": f"{R}/search/{search}/journal.jsonl", "losses": f"{R}/search/{search}/losses.csv"}


def flags(stage: str, item: str = "") -> tuple[dict, dict]:
    """Flags that name what a stage reads, and those that name what it writes; `item` is its layer or search."""
    own = searched(item)
    images = {"images": f"{R}/images/search.h5"}
    baseline = {"baseline": f"{R}/baseline/search.h5"}
    shared = {"extracted": f"{R}/weights.h5", "moments": f"{R}/calibration.h5"}
    # Only for stages that need it: layers.json may be the damaged file.
    gathering = stage in ("profile_layers", "search", "pack_model")
    clusters = {"clusters": [f"{R}/layers/{layer}/clusters.h5" for layer in layers()] if gathering else []}
    threads, code, gpus = {"threads": 1}, {"code": "code", "journal": own["journal"]}, {"gpus": 0}

    def some(*names: str) -> dict:
        return {name: own[name] for name in names}

    files = ("packed", "dense", "sizes")
    table = {
        "prepare_images": (
            {"spec": MODEL["spec"]},
            {"search": f"{R}/images/search.h5", "held_out": f"{R}/images/held_out.h5"},
        ),
        "evaluate_dense": (
            MODEL | {"search": f"{R}/images/search.h5", "held_out": f"{R}/images/held_out.h5"} | threads | gpus,
            {"search_logits": f"{R}/baseline/search.h5", "held_out_logits": f"{R}/baseline/held_out.h5"}
            | {"metrics": f"{R}/baseline/metrics.json"},
        ),
        "inspect_model": (MODEL | {"name": "m"}, {"layers": f"{R}/model/layers.json"}),
        "extract_weights": (MODEL | images | {"name": "m"} | gpus, {"extracted": f"{R}/weights.h5"}),
        "measure_inputs": (
            MODEL | images | {"layers": f"{R}/model/layers.json"} | gpus,
            {"moments": f"{R}/calibration.h5"},
        ),
        "cluster_layer": (
            {"layer": item, "weights": f"{R}/weights.h5"},
            {"clusters": f"{R}/layers/{item}/clusters.h5"},
        ),
        "profile_layers": (
            MODEL | images | baseline | clusters | gpus,
            {"table": f"{R}/sensitivity/0.csv"},
        ),
        "gather_sensitivity": ({"tables": [f"{R}/sensitivity/0.csv"]}, {"sensitivity": f"{R}/sensitivity.csv"}),
        "search": (
            MODEL | images | baseline | clusters | {"sensitivity": f"{R}/sensitivity.csv"} | code | threads | gpus,
            some("front", "recipe"),
        ),
        "search_rate_distortion": (
            MODEL | images | baseline | shared | code | threads | gpus,
            some("front", "losses", "recipe"),
        ),
        "pack_model": (MODEL | images | clusters | some("recipe") | threads, some(*files)),
        "pack_rate_distortion": (MODEL | images | shared | some("recipe") | threads, some(*files)),
        "evaluate_packed": (
            {"model": "m", "search": item, "dataset": "digits", "spec": MODEL["spec"], **some("packed")}
            | {"images": f"{R}/images/held_out.h5", "baseline": f"{R}/baseline/held_out.h5"}
            | some("recipe", "sizes")
            | {"benchmarks": f"{R}/benchmarks", "layers_per_job": 16}
            | threads
            | gpus,
            some("answers", "metrics"),
        ),
        "summarise": (
            {"metrics": [searched("slope")["metrics"], searched("rd")["metrics"]]}
            | {"baseline": [f"{R}/baseline/metrics.json"]},
            {"summary": "results/summary.txt", "table": "results/summary.csv"},
        ),
        "report_model": (
            # The page holds all that the figures show.
            {"model": "m", "metrics": [own["metrics"]], "layers_per_job": 16, "figures": f"{R}/report/{item}/figures"},
            {"page": f"{R}/report/{item}/index.html"},
        ),
    }
    return table[stage]


WITHOUT_SETTINGS = ("evaluate_dense", "gather_sensitivity", "summarise")


def run(stage: str, item: str = "") -> int:
    """Exit code of a stage, called in the folder of the study."""
    given, made = flags(stage, item)
    arguments = [stage]
    if stage not in WITHOUT_SETTINGS:
        arguments += ["--settings", stage_settings(CONFIG, stage, "m", item)]
    for name, value in (given | made).items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return main(arguments)


CHAIN = (
    *(("prepare_images", ""), ("evaluate_dense", ""), ("inspect_model", ""), ("extract_weights", "")),
    *(("measure_inputs", ""), ("cluster_layer", None), ("profile_layers", ""), ("gather_sensitivity", "")),
    *(("search", "slope"), ("search_rate_distortion", "rd"), ("pack_model", "slope"), ("pack_rate_distortion", "rd")),
    *(("evaluate_packed", "slope"), ("evaluate_packed", "rd"), ("summarise", "")),
)


def write_network(module: nn.Module | None = None, function: str = "tiny") -> None:
    """The model's two files, below the working directory; `function` of tests.faults.networks builds it again."""
    if module is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = networks.tiny().eval()
    embedded = {"kind": "embedded", "name": "tiny", "arguments": {"classes": 10}}
    own = {"kind": "python", "name": f"tests.faults.networks:{function}", "arguments": {}}
    spec = {
        "name": function,
        "builder": embedded if function == "tiny" else own,
        "dropped": [],
        "input": [1, 8, 8],
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
    for search, rule in (("slope", "search"), ("rd", "search_rate_distortion")):
        write_text(f"{R}/benchmarks/search/{search}/{rule}.tsv", "s\tmax_rss\n1.0\t2.0\n")
    for stage, item in CHAIN:
        for each in layers() if item is None else [item]:
            assert run(stage, each) == 0, (stage, each)
