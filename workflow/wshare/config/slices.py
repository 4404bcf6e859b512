"""What of the configuration each stage depends on."""

import json

from wshare.config.validation import image_folder
from wshare.models.sources.table import SOURCES
from wshare.names import matches

# What decides which network a model is.
_NETWORK = ("architecture", "arguments", "preprocessing", "task")
_MODEL_SOURCE = (*_NETWORK, "source", "weights", "url", "path", "sha256", "classes")


def model_names(config: dict, trained: bool) -> list[str]:
    """Models that a rule trains, or those whose weights come from elsewhere."""
    return [name for name, model in config["models"].items() if SOURCES[model["source"]].trained == trained]


def search_names(config: dict, rate_distortion: bool) -> list[str]:
    """Searches by the method `rate_distortion`, or all others: each kind has rules of its own."""
    return [
        name
        for name, search in config["searches"].items()
        if (search["method"] == "rate_distortion") == rate_distortion
    ]


def studies(config: dict) -> list[tuple[str, str]]:
    """Model and search of each result that a run is to give, in the order of the configuration."""
    return [
        (name, search)
        for name, model in config["models"].items()
        for search in config["searches"]
        if model["searches"] is None or search in model["searches"]
    ]


def stage_settings(config: dict, stage: str, model: str, item: str = "") -> str:
    """What a stage's result depends on, as canonical JSON: equal text means equal settings.

    `config` is complete. `item` is the layer of `cluster_layer` and the search of the stages behind it.
    Anything left out here (names, other layers, threads) reruns nothing when it changes.
    """
    own = config["models"][model]
    seed = {"seed": config["seed"]}
    if stage == "fetch_model":
        settings = {key: own[key] for key in _MODEL_SOURCE}
    elif stage == "train_model":
        keys = (*_NETWORK, "training")
        data = _data_settings(config, own)
        # Train and search images are dealt first: how many are held out changes neither.
        data["split"] = {key: size for key, size in data["split"].items() if key != "held_out"}
        settings = {key: own[key] for key in keys} | {"dataset": data} | seed
    elif stage == "prepare_images":
        settings = _data_settings(config, own) | seed
    elif stage == "inspect_model":
        settings = {key: own["layers"][key] for key in ("include", "exclude")}
    elif stage == "extract_weights":
        settings = {key: own["layers"][key] for key in ("include", "exclude")} | config["importance"] | seed
    elif stage == "cluster_layer":
        settings = layer_settings(config, model, item) | seed
    elif stage == "profile_layers":
        settings = {"images": config["sensitivity"]["images"]}
    elif stage == "measure_inputs":
        settings = config["calibration"] | seed
    elif stage in ("search", "search_rate_distortion"):
        settings = config["searches"][item] | seed
    elif stage == "pack_model":
        settings = dict(config["packing"])
    elif stage == "pack_rate_distortion":
        settings = {"batch_norm": config["packing"]["batch_norm"]}
    elif stage == "evaluate_packed":
        settings = {"quality_target": config["searches"][item]["quality_target"]} | seed
    elif stage == "report_model":
        settings = study_of(config, model)
    else:
        settings = {}
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)


def study_of(config: dict, model: str) -> dict:
    """A configuration that gives the results of one model alone, and the same ones."""
    own = {key: value for key, value in config["models"][model].items() if key != "training"}
    if SOURCES[own["source"]].trained:
        own["training"] = config["models"][model]["training"]
    shared = ("seed", "clustering", "importance", "calibration", "sensitivity", "packing")
    return {key: config[key] for key in shared} | {
        "datasets": {own["dataset"]: _data_settings(config, config["models"][model])},
        "models": {model: own},
        "searches": {name: config["searches"][name] for owner, name in studies(config) if owner == model},
    }


def _data_settings(config: dict, model: dict) -> dict:
    dataset = config["datasets"][model["dataset"]]
    return dataset | {"path": image_folder(config, dataset)}


def layer_settings(config: dict, model: str, layer: str) -> dict:
    """Clustering settings of one layer: default, then the first `re:` pattern that matches, then exact name."""
    overrides = config["models"][model]["layers"]["overrides"]
    patterns = (value for key, value in overrides.items() if key.startswith("re:") and matches(key, layer))
    return config["clustering"] | next(patterns, {}) | overrides.get(layer, {})
