"""Configuration: validation, defaults, and what of it each stage depends on.

Everything here is pure and light: it runs each time the Snakefile is parsed.
"""

import ast
import copy
import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from wshare.errors import UserError
from wshare.names import matches

PACKAGE = Path(__file__).parent
# A link to workflow/schemas in the repository; an installed package holds the file itself.
SCHEMA_FILE = PACKAGE / "schemas" / "config.schema.yaml"

# What decides which network a model is.
_MODEL_SOURCE = ("source", "architecture", "weights", "url", "path", "sha256", "classes", "arguments", "preprocessing")
# What a source reads beside the keys that all of them do.
_READ_BY_MODEL = {
    "train": (),
    "torchvision": ("weights", "url", "path", "sha256", "classes"),
    "timm": ("weights", "path", "sha256", "classes"),
    "wheel": ("classes",),
    "file": ("path", "sha256", "classes"),
    "python": ("classes",),
}
_READ_BY_DATASET = {
    "mnist": ("enlarge",),
    "digits": ("enlarge",),
    "fashion_mnist": ("enlarge", "path"),
    "cifar10": ("enlarge", "path"),
    "imagenet": ("enlarge", "path", "on_bad_image"),
    "imagenette": ("enlarge", "path", "on_bad_image"),
    "imagefolder": ("enlarge", "path", "on_bad_image", "class_map", "labels"),
    "photos": (),
    "python": ("enlarge", "function"),
}
_IMAGE_SOURCES = ("imagenet", "imagenette", "imagefolder", "cifar10")


@cache
def schema() -> dict:
    """The configuration's JSON schema."""
    return yaml.safe_load(SCHEMA_FILE.read_text(encoding="utf-8"))


def complete(config: dict) -> dict:
    """Configuration with all defaults filled in; the argument stays as it is.

    UserError lists every problem at once, each with its path, what is allowed, and the closest known
    name where one is misspelled.
    """
    errors = list(_validator(schema()).iter_errors(config))
    problems = [line for error in errors for line in _describe(error)]
    problems += _not_json(config, "")
    given, config = config, copy.deepcopy(config)
    # Entries that break the schema are not looked into further; the others are.
    broken = {tuple(error.absolute_path)[:2] for error in errors}
    if {"datasets", "models", "searches"} <= config.keys() and not any(len(path) == 1 for path in broken):
        for path in broken:
            if path and path[0] in ("datasets", "models"):
                del config[path[0]][path[1]]
            elif path and path[0] in config:
                config[path[0]] = {}
        _fill(config, schema())
        problems += _cross_check(given, config)
    if problems:
        raise UserError(
            "\n".join(["the configuration has problems:", *(f"  {line}" for line in sorted(set(problems)))])
        )
    return config


def complete_search(search: dict) -> dict:
    """One search of a configuration with all defaults filled in; UserError as for `complete`."""
    node = {"$ref": "#/$defs/search"}
    errors = _validator(node | {"$defs": schema()["$defs"]}).iter_errors(search)
    problems = sorted({line for error in errors for line in _describe(error)})
    search = copy.deepcopy(search)
    if not problems:
        _fill(search, node)
        problems = list(_check_search("", search))
    if problems:
        raise UserError("; ".join(problems))
    return search


def defaults(section: str) -> dict:
    """A section of the configuration as it is where nothing is set, such as `importance`."""
    value: dict = {}
    _fill(value, schema()["properties"][section])
    return value


def _validator(node: dict) -> Draft202012Validator:
    """Validator for which 3.0 is no integer: the programs behind would take it for another value than 3."""
    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return extend(Draft202012Validator, type_checker=checker)(node)


def _describe(error: ValidationError) -> Iterator[str]:
    where = _path(error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        # YAML's keys may be numbers and truth values too.
        for key in sorted(set(error.instance) - set(known), key=str):
            yield f"{joined(where, key)}: unknown key.{_closest(key, known)}"
    elif error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        # The validator reports each missing key on its own, with the same list.
        yield from (f"{joined(where, key)}: required, but missing" for key in missing if f"'{key}'" in error.message)
    elif error.validator == "enum":
        allowed = [value for value in error.validator_value if value is not None]
        listed = ", ".join(map(str, allowed))
        yield f"{where}: {error.instance!r} is not one of {listed}.{_closest(error.instance, allowed)}"
    elif "propertyNames" in error.absolute_schema_path:
        rule = "a name has letters, digits, '_', '-' and '.', and starts with one of the first two"
        yield f"{joined(where, str(error.instance))}: {rule}"
    else:
        yield f"{where}: {error.message}"


def _not_json(value: Any, where: str) -> Iterator[str]:
    """Values that YAML knows and JSON does not: NaN, infinity, dates."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _not_json(entry, joined(where, key))
    elif isinstance(value, list):
        for position, entry in enumerate(value):
            yield from _not_json(entry, f"{where}[{position}]")
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        yield f"{where}: {value} is neither text, a finite number, true, false nor null"


def _path(parts: Any) -> str:
    text = ""
    for part in parts:
        text = f"{text}[{part}]" if isinstance(part, int) else joined(text, part)
    return text


def joined(where: str, key: str) -> str:
    """Path of a key in the configuration."""
    return f"{where}.{key}" if where else str(key)


def _closest(word: Any, known: list) -> str:
    found = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def _fill(value: Any, node: dict) -> None:
    """Fill the defaults of a valid value, in place."""
    node = resolved(schema(), node)
    if not isinstance(value, dict):
        return
    for key, child in node.get("properties", {}).items():
        if "default" in child and key not in value:
            value[key] = copy.deepcopy(child["default"])
    for rule in node.get("allOf", []):
        if _validator(rule["if"]).is_valid(value):
            _fill(value, rule["then"])
    for key, entry in value.items():
        child = node.get("properties", {}).get(key, node.get("additionalProperties"))
        if isinstance(child, dict):
            _fill(entry, child)


def resolved(root: dict, node: dict) -> dict:
    """A schema's node with what its reference names; what stands beside the reference wins."""
    if "$ref" not in node:
        return node
    target = root
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return resolved(root, target) | {key: value for key, value in node.items() if key != "$ref"}


def _cross_check(given: dict, config: dict) -> Iterator[str]:
    """Problems between keys; `given` is the configuration as written, `config` its valid part with all defaults."""
    yield from _check_bins("clustering", config["clustering"])
    for name, dataset in config["datasets"].items():
        yield from _check_dataset(config, name, dataset)
    for name, model in config["models"].items():
        yield from _check_model(given, config, name, model)
    for name, search in config["searches"].items():
        yield from _check_search(f"searches.{name}", search)


def _check_search(where: str, search: dict) -> Iterator[str]:
    if search["options"].get("compression_rate") and search["options"]["kl"]:
        yield f"{joined(where, 'options.kl')}: not read with compression_rate; remove one of the two keys"


def _check_bins(where: str, clustering: dict) -> Iterator[str]:
    # Where the defaults are not valid, other lines say so.
    if {"bins", "k_max"} <= clustering.keys() and clustering["bins"] < clustering["k_max"]:
        yield f"{where}.bins: {clustering['bins']} bins cannot hold k_max {clustering['k_max']} shared values"


def _check_dataset(config: dict, name: str, dataset: dict) -> Iterator[str]:
    where = f"datasets.{name}"
    for split, size in dataset["split"].items():
        if size >= 1 and not isinstance(size, int):
            yield f"{where}.split.{split}: {size!r} is neither a count of images nor a share below 1"
        elif size < 1 and dataset["source"] == "photos":
            yield f"{where}.split.{split}: {size!r} is a share, and crops have no total; give a count of images"
    shares = sum(size for size in dataset["split"].values() if size < 1)
    if shares > 1 + 1e-9:
        yield f"{where}.split: the shares add up to {shares:g}, which is more than all images"
    if dataset["source"] == "imagefolder" and dataset["class_map"] and not dataset["labels"]:
        yield f"{where}.class_map: not read with labels: false; remove one of the two keys"
    keys = ("path", "class_map", "function", "enlarge", "labels", "on_bad_image")
    for key in _unread("dataset", dataset, _READ_BY_DATASET, keys):
        yield f"{where}.{key}: source {dataset['source']!r} does not read it; remove the key"
    if dataset["source"] == "python" and not dataset["function"]:
        yield f"{where}.function: required for source 'python'"
    if dataset["source"] in _IMAGE_SOURCES and not _image_path(config, dataset):
        yield f"{where}.path: a folder of images is needed; set it here, or pass --config images=<folder>"


def _check_model(given: dict, config: dict, name: str, model: dict) -> Iterator[str]:
    where = f"models.{name}"
    dataset = config["datasets"].get(model["dataset"])
    if model["dataset"] not in given["datasets"]:
        known = list(given["datasets"])
        yield f"{where}.dataset: {model['dataset']!r} is not in datasets.{_closest(model['dataset'], known)}"
    elif dataset and model["source"] == "train" and not _has_labels(dataset):
        yield f"{where}.dataset: {model['dataset']!r} has no labels to train on; take another dataset or model source"
    elif dataset and model["source"] == "train" and "train" not in dataset["split"]:
        yield f"datasets.{model['dataset']}.split.train: required, since models.{name} is trained on it"
    for position, search in enumerate(model["searches"] or []):
        if search not in given["searches"]:
            known = list(given["searches"])
            yield f"{where}.searches[{position}]: {search!r} is not in searches.{_closest(search, known)}"
    for key in _unread("model", model, _READ_BY_MODEL, ("weights", "url", "path", "sha256", "classes")):
        yield f"{where}.{key}: source {model['source']!r} does not read it; remove the key"
    if model["source"] != "train" and "training" in given["models"][name]:
        yield f"{where}.training: source {model['source']!r} does not read it; remove the key"
    for key, own in model["layers"]["overrides"].items():
        yield from _check_bins(f"{where}.layers.overrides.{key!r}", config["clustering"] | own)
    if model["source"] == "file" and not model["path"]:
        yield f"{where}.path: required for source 'file'"
    for key, patterns in model["layers"].items():
        for pattern in (pattern for pattern in patterns if pattern.startswith("re:")):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                yield f"{where}.layers.{key}.{pattern!r}: not a regular expression ({error})"


def _unread(kind: str, entry: dict, read: dict[str, tuple[str, ...]], keys: tuple[str, ...]) -> Iterator[str]:
    """Those of `keys` with another value than the schema's default, which the entry's source does not read."""
    known = schema()["$defs"][kind]["properties"]
    return (key for key in keys if entry[key] != known[key]["default"] and key not in read[entry["source"]])


def _has_labels(dataset: dict) -> bool:
    """Whether a dataset has labels, as far as its settings tell: a function of the user may give none."""
    # Where the source does not read `labels`, another line says so.
    return dataset["source"] != "photos" and (dataset["labels"] or dataset["source"] != "imagefolder")


def _image_path(config: dict, dataset: dict) -> str | None:
    return dataset["path"] or (config["images"] if dataset["source"] in _IMAGE_SOURCES else None)


def model_names(config: dict, trained: bool) -> list[str]:
    """Models that a rule trains, or those whose weights come from elsewhere."""
    return [name for name, model in config["models"].items() if (model["source"] == "train") == trained]


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
        keys = ("architecture", "arguments", "training", "preprocessing")
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
        settings = config["inputs"] | seed
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
    if own["source"] == "train":
        own["training"] = config["models"][model]["training"]
    shared = ("seed", "clustering", "importance", "inputs", "sensitivity", "packing")
    return {key: config[key] for key in shared} | {
        "datasets": {own["dataset"]: _data_settings(config, config["models"][model])},
        "models": {model: own},
        "searches": {name: config["searches"][name] for owner, name in studies(config) if owner == model},
    }


def _data_settings(config: dict, model: dict) -> dict:
    dataset = config["datasets"][model["dataset"]]
    return dataset | {"path": _image_path(config, dataset)}


def layer_settings(config: dict, model: str, layer: str) -> dict:
    """Clustering settings of one layer: default, then the first `re:` pattern that matches, then exact name."""
    overrides = config["models"][model]["layers"]["overrides"]
    patterns = (value for key, value in overrides.items() if key.startswith("re:") and matches(key, layer))
    return config["clustering"] | next(patterns, {}) | overrides.get(layer, {})


# Modules of `sources` that a model of each source is built with.
_SOURCE_MODULES = {
    "train": (),
    "torchvision": ("torchvision", "file"),
    "timm": ("timm", "file"),
    "wheel": ("wheel", "file"),
    "file": ("file", "torchvision", "timm", "python"),
    "python": ("python",),
}


@cache
def code_files(stage: str, source: str = "file", method: str | None = None) -> tuple[str, ...]:
    """Source files of the package that a stage's module imports, directly or not, sorted.

    Read from the import statements, wherever they stand, so that no list has to be kept by hand. Of the model
    sources only those count that a model of `source` needs, of the search methods only `method`, or all.
    """
    chosen = PACKAGE / "search" / "__init__.py"
    found: set[Path] = set()
    waiting = [PACKAGE / "stages" / f"{stage}.py"]
    while waiting:
        file = waiting.pop()
        foreign = file.parent.name == "sources" and file.stem not in ("__init__", *_SOURCE_MODULES[source])
        if file not in found and not foreign:
            found.add(file)
            # That file imports the one method that is named.
            own = method and file == chosen
            waiting += [PACKAGE / "search" / f"{method}.py"] if own else _imports(file)
    return tuple(sorted(str(file) for file in found))


@cache
def code_hash(stage: str, source: str = "file", method: str | None = None) -> str:
    """SHA-256 over names and contents of a stage's code files.

    For a rule's parameters: source files among its inputs would be looked at by their dates first, and a release that
    is unpacked brings old ones.
    """
    digest = hashlib.sha256()
    for file in code_files(stage, source, method):
        content = Path(file).read_bytes()
        digest.update(f"{Path(file).relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wshare"):
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    bases = [PACKAGE.joinpath(*module.split(".")[1:]) for module in modules]
    files = [
        path
        for base in bases
        for path in (base.with_suffix(".py"), base / "__init__.py", base.parent / "__init__.py")
        if path.is_file()
    ]
    # The package's own __init__ is a door for users: what it offers is written elsewhere.
    return tuple(path for path in files if path != PACKAGE / "__init__.py")
