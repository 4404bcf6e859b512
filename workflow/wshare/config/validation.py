"""Configuration: validation, defaults, and what of it each stage depends on.

Everything here is pure and light: it runs each time the Snakefile is parsed.
"""

import copy
import difflib
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

PACKAGE = Path(__file__).parents[1]


# A link to workflow/schemas in the repository; an installed package holds the file itself.
SCHEMA_FILE = PACKAGE / "schemas" / "config.schema.yaml"


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
