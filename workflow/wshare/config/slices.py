"""Slices of the configuration: what of it a job's result depends on, as the rules name it.

Anything outside its slice (names, other layers, threads) reruns nothing when it changes.
"""

import copy
import json
from collections.abc import Callable

from wshare.config.validation import image_folder
from wshare.data.datasets.table import calibration_of, held_out_of
from wshare.models.sources.table import SOURCES
from wshare.names import matches
from wshare.search.methods import METHODS, Method, packing_of

# Path of a value in the configuration, or what finds values in it for the wildcards of a job.
Part = str | Callable[[dict, dict], dict]


def slice_of(config: dict, wildcards: dict, *parts: Part, **entries: Part | list[Part]) -> dict:
    """Values of a complete configuration that a rule names, for the wildcards of one of its jobs.

    A part is a path such as `models.{model}.layers.include`, whose value goes by the path's last key; `clustering.*`
    gives every key of a section; `!split.train` takes out what an earlier part gave. A part may also be a function of
    configuration and wildcards, which returns such values. `{dataset}` stands for the model's dataset. `entries` are
    slices of their own, by name. KeyError for a path that leads nowhere.
    """
    names = dict(wildcards)
    if "model" in names:
        names["dataset"] = config["models"][names["model"]]["dataset"]
    found: dict = {}
    for part in parts:
        if callable(part):
            found |= part(config, wildcards)
        elif part.startswith("!"):
            *path, key = part[1:].split(".")
            del _at(found, path)[key]
        else:
            # Split before names are put in: they may hold dots.
            *path, key = (step.format(**names) for step in part.split("."))
            section = copy.deepcopy(_at(config, path))
            found |= section if key == "*" else {key: section[key]}
    for name, entry in entries.items():
        own = entry if isinstance(entry, list) else [entry]
        found[name] = slice_of(config, wildcards, *own)
    return found


def text_of(settings: dict) -> str:
    """Settings as canonical JSON: equal text means equal settings."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _at(value: dict, path: list[str]) -> dict:
    for key in path:
        value = value[key]
    return value


def image_source(dataset: dict) -> str | None:
    """Source of a dataset's images; None of two sources, as for stages that serve all of them."""
    own = held_out_of(dataset)
    return dataset["source"] if own is None or own["source"] == dataset["source"] else None


def calibration_source(dataset: dict) -> str | None:
    """Source of a dataset's images for calibration alone; None where it has none."""
    own = calibration_of(dataset)
    return own and own["source"]


def with_image_folders(config: dict) -> dict:
    """A complete configuration whose datasets each tell the folder of their images, if they have one."""
    datasets = {name: dataset | {"path": image_folder(config, dataset)} for name, dataset in config["datasets"].items()}
    return config | {"datasets": datasets}


def model_names(config: dict, trained: bool) -> list[str]:
    """Models that a rule trains, or those whose weights come from elsewhere."""
    return [name for name, model in config["models"].items() if SOURCES[model["source"]].trained == trained]


def studies(config: dict) -> list[tuple[str, str]]:
    """Model and search of each result that a run is to give, in the order of the configuration."""
    return [
        (name, search)
        for name, model in config["models"].items()
        for search in config["searches"]
        if model["searches"] is None or search in model["searches"]
    ]


def method_of(config: dict, search: str) -> Method:
    """Row of the method that a search goes by."""
    return METHODS[config["searches"][search]["method"]]


def layer_overrides(config: dict, wildcards: dict) -> dict:
    """Clustering settings that differ for a layer: those of the first `re:` pattern that matches, then of its name."""
    overrides = config["models"][wildcards["model"]]["layers"]["overrides"]
    layer = wildcards["layer"]
    patterns = (value for key, value in overrides.items() if key.startswith("re:") and matches(key, layer))
    return next(patterns, {}) | overrides.get(layer, {})


def packing_options(config: dict, wildcards: dict) -> dict:
    """Settings of packing that a search sets for itself, among its options."""
    return packing_of(config["searches"][wildcards["search"]]["options"])


def study_of_model(config: dict, wildcards: dict) -> dict:
    """A configuration that gives the results of one model alone, and the same ones."""
    model = wildcards["model"]
    own = dict(config["models"][model])
    if not SOURCES[own["source"]].trained:
        del own["training"]
    shared = ("seed", "clustering", "importance", "calibration", "sensitivity", "packing")
    return {key: config[key] for key in shared} | {
        "datasets": {own["dataset"]: config["datasets"][own["dataset"]]},
        "models": {model: own},
        "searches": {name: config["searches"][name] for owner, name in studies(config) if owner == model},
    }
