"""Configuration: validation and defaults.

Everything here is pure and light: it runs each time the Snakefile is parsed.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from wshare.data.datasets import table as images
from wshare.errors import UserError
from wshare.evaluation.chances import goes_by_confidence, too_few_scores, unconfirmed
from wshare.models.sources import table as networks
from wshare.names import closest, did_you_mean
from wshare.tasks.table import is_count

PACKAGE = Path(__file__).parents[1]
# A link to workflow/schemas in the repository; an installed package holds the file itself.
SCHEMA_FILE = PACKAGE / "schemas" / "config.schema.yaml"
# Keys that had another name, by their path, and values by their key's; `*` stands for a name of the user's choice.
RENAMED = {
    "inputs": "calibration",
    "images": "image_folder",
    "searches.*.options.kl": "max_kl",
}
RENAMED_VALUES = {"models.*.source": {"wheel": "efficientnet_lite"}}


@cache
def schema() -> dict:
    """The configuration's JSON schema."""
    return yaml.safe_load(SCHEMA_FILE.read_text(encoding="utf-8"))


def complete(config: dict) -> dict:
    """Configuration with all defaults filled in; the argument stays as it is.

    UserError lists every problem at once, each with its path, what is allowed, and the closest known
    name where one is misspelled.
    """
    # What was renamed is looked at under its new name: one line tells, and no other follows from it.
    given = copy.deepcopy(config)
    problems = list(_rename(given, ""))
    errors = list(_validator(schema()).iter_errors(given))
    problems += [line for error in errors for line in _describe(error)]
    problems += _not_json(given, "")
    config = copy.deepcopy(given)
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
    search = copy.deepcopy(search)
    renamed = list(_rename(search, "searches.*"))
    errors = _validator(node | {"$defs": schema()["$defs"]}).iter_errors(search)
    problems = sorted({*renamed, *(line for error in errors for line in _describe(error)), *_not_json(search, "")})
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


def _rename(node: Any, place: str, where: str = "") -> Iterator[str]:
    """Put new names in place of old ones, as a line tells of each.

    `place` is the node's path as RENAMED writes it, and `where` as the user does.
    """
    if not isinstance(node, dict):
        return
    for key in list(node):
        here = joined(place, key)
        here = here if here in _known_places() else joined(place, "*")
        new = RENAMED.get(here)
        if new is not None:
            yield f"{joined(where, key)}: renamed to {new}"
            node.setdefault(new, node.pop(key))
            continue
        value = node[key]
        renamed = RENAMED_VALUES.get(here, {})
        if isinstance(value, str) and value in renamed:
            yield f"{joined(where, key)}: {value!r} was renamed to {renamed[value]!r}"
            node[key] = renamed[value]
        yield from _rename(value, here, joined(where, key))


@cache
def _known_places() -> set[str]:
    """Paths of what was renamed, and of all above them."""
    paths = [path.split(".") for path in [*RENAMED, *RENAMED_VALUES]]
    return {".".join(parts[:length]) for parts in paths for length in range(1, len(parts) + 1)}


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
            yield f"{joined(where, key)}: unknown key. {closest(key, known)}"
    elif error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        # The validator reports each missing key on its own, with the same list.
        yield from (f"{joined(where, key)}: required, but missing" for key in missing if f"'{key}'" in error.message)
    elif error.validator == "enum":
        allowed = [value for value in error.validator_value if value is not None]
        listed = ", ".join(map(str, allowed))
        hint = did_you_mean(error.instance, allowed)
        yield f"{where}: {error.instance!r} is not one of {listed}." + (f" {hint}" if hint else "")
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
    if search["options"].get("compression_rate") and search["options"]["max_kl"]:
        yield f"{joined(where, 'options.max_kl')}: not read with compression_rate; remove one of the two keys"


def _check_bins(where: str, clustering: dict) -> Iterator[str]:
    # Where the defaults are not valid, other lines say so.
    if {"bins", "k_max"} <= clustering.keys() and clustering["bins"] < clustering["k_max"]:
        yield f"{where}.bins: {clustering['bins']} bins cannot hold k_max {clustering['k_max']} shared values"


def _check_dataset(config: dict, name: str, dataset: dict) -> Iterator[str]:
    where = f"datasets.{name}"
    source, sizes = images.SOURCES[dataset["source"]], dataset["split"]
    for split, size in sizes.items():
        if source.crops and (size == images.ALL or size < 1):
            yield f"{where}.split.{split}: {size!r} is a share, and crops have no total; give a count of images"
        elif size != images.ALL and size >= 1 and not isinstance(size, int):
            yield f"{where}.split.{split}: {size!r} is neither a count of images nor a share below 1"
    # Held-out images of their own collection are a share of that.
    together = {split: size for split, size in sizes.items() if split != "held_out" or not dataset["held_out"]}
    shares = sum(1 if size == images.ALL else size for size in together.values() if size == images.ALL or size < 1)
    if shares > 1 + 1e-9:
        yield f"{where}.split: the shares add up to {shares:g}, which is more than all images"
    if "class_map" in source.keys and dataset["class_map"] and not dataset["labels"]:
        yield f"{where}.class_map: not read with labels: false; remove one of the two keys"
    if isinstance(dataset["labels"], list) and not source.columns:
        yield f"{where}.labels: source {source.name!r} has no columns; give true or false"
    yield from _check_keys(where, "dataset", dataset, images.SOURCES)
    if source.has_folder and not image_folder(config, dataset):
        yield f"{where}.path: a folder of images is needed; set it here, or pass --config image_folder=<folder>"
    yield from _check_collection(f"{where}.held_out", config, dataset, images.held_out_of(dataset))
    yield from _check_collection(f"{where}.calibration", config, dataset, images.calibration_of(dataset))


def _check_collection(where: str, config: dict, dataset: dict, own: dict | None) -> Iterator[str]:
    """Problems of a collection that images are held out from, or that calibration looks at."""
    if own is None:
        return
    for name in (dataset["source"], own["source"]):
        if images.SOURCES[name].crops:
            yield f"{where}: source {name!r} deals its crops itself; take another source, or leave it out"
            return
    source = images.SOURCES[own["source"]]
    place = {key: own[key] for key in ("source", *images.PLACE)}
    yield from _check_keys(where, "dataset", place, images.SOURCES)
    if source.has_folder and not place["path"]:
        yield f"{where}.path: a folder of images is needed; set it here"
    elif place == {key: dataset[key] for key in place} | {"path": image_folder(config, dataset)}:
        yield f"{where}: names the search images; give a path, function or source of other images"


def _check_model(given: dict, config: dict, name: str, model: dict) -> Iterator[str]:
    where = f"models.{name}"
    dataset = config["datasets"].get(model["dataset"])
    trained = networks.SOURCES[model["source"]].trained
    if model["dataset"] not in given["datasets"]:
        hint = closest(model["dataset"], given["datasets"])
        yield f"{where}.dataset: {model['dataset']!r} is not in datasets. {hint}"
    elif dataset and trained and not _has_labels(dataset):
        yield f"{where}.dataset: {model['dataset']!r} has no labels to train on; take another dataset or model source"
    elif dataset and trained and "train" not in dataset["split"]:
        yield f"datasets.{model['dataset']}.split.train: required, since models.{name} is trained on it"
    elif dataset:
        yield from _check_confidence(config, model, dataset["split"])
    for position, search in enumerate(model["searches"] or []):
        if search not in given["searches"]:
            yield f"{where}.searches[{position}]: {search!r} is not in searches. {closest(search, given['searches'])}"
    # As written: what is filled in below a mapping is no choice of the user's.
    yield from _check_keys(where, "model", given["models"][name], networks.SOURCES)
    yield from _check_layers(where, config, model["layers"])


def _check_confidence(config: dict, model: dict, split: dict) -> Iterator[str]:
    """Searches whose confidence no network reaches on so many images, even one that changes nothing."""
    search, held_out = split["search"], split["held_out"]
    # Of a share of the images the number is not known yet, and what is no number of images has its own line.
    if not all(isinstance(size, int) and size >= 1 for size in (search, held_out)):
        return
    for name in config["searches"] if model["searches"] is None else model["searches"]:
        settings = config["searches"].get(name)
        if settings is None or not goes_by_confidence(settings):
            continue
        if is_count(model):
            told = unconfirmed(search, held_out, 1.0, settings["quality_target"], settings["confidence"])
        else:
            told = too_few_scores(search, held_out)
        if told:
            yield f"searches.{name}: datasets.{model['dataset']}: {told}"


def _check_layers(where: str, config: dict, layers: dict) -> Iterator[str]:
    for key, own in layers["overrides"].items():
        yield from _check_bins(f"{where}.layers.overrides.{key!r}", config["clustering"] | own)
    for key, patterns in layers.items():
        for pattern in (pattern for pattern in patterns if pattern.startswith("re:")):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                yield f"{where}.layers.{key}.{pattern!r}: not a regular expression ({error})"


def _check_keys(where: str, kind: str, entry: dict, sources: Mapping[str, Any]) -> Iterator[str]:
    """Keys of a dataset or model with another value than the default that its source does not read, or needs."""
    source, known = sources[entry["source"]], schema()["$defs"][kind]["properties"]
    for key in sorted({key for row in sources.values() for key in row.keys} - set(source.keys)):
        if entry.get(key, known[key]["default"]) != known[key]["default"]:
            yield f"{where}.{key}: source {source.name!r} does not read it; remove the key"
    yield from (f"{where}.{key}: required for source {source.name!r}" for key in source.required if not entry.get(key))


def _has_labels(dataset: dict) -> bool:
    """Whether a dataset has labels, as far as its settings tell: a function of the user may give none."""
    source = images.SOURCES[dataset["source"]]
    # Where the source does not read `labels`, another line says so.
    return source.labelled and (dataset["labels"] or "labels" not in source.keys)


def image_folder(config: dict, dataset: dict) -> str | None:
    """Folder that a dataset's images are read from, if its source reads one."""
    return dataset["path"] or (config["image_folder"] if images.SOURCES[dataset["source"]].has_folder else None)
