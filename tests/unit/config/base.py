"""A configuration that is valid, for tests to edit."""

import copy

import pytest

from wshare.config.validation import PACKAGE, complete, schema
from wshare.errors import UserError

ROOT = PACKAGE.parents[1]


BASE = {
    "image_folder": "images",
    "datasets": {
        "d": {"source": "digits", "split": {"train": 0.2, "search": 0.4, "held_out": 0.4}},
        "folder": {"source": "imagefolder", "split": {"search": 1000, "held_out": 2000}},
    },
    "models": {
        "m": {"source": "train", "architecture": "tiny", "dataset": "d"},
        "f": {"source": "torchvision", "architecture": "resnet18", "dataset": "folder"},
    },
    "searches": {
        "s": {"method": "slope"},
        "t": {"method": "two_step"},
        "u": {"method": "uniform"},
        "r": {"method": "rate_distortion"},
    },
}


def edited(*edits: tuple[str, object]) -> dict:
    """The base configuration with values set at dotted paths; `/` stands for a dot within a key."""
    config = copy.deepcopy(BASE)
    for path, value in edits:
        *parts, last = (part.replace("/", ".") for part in path.split("."))
        node = config
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return config


def problems(config: dict) -> list[str]:
    with pytest.raises(UserError) as error:
        complete(config)
    first, *lines = str(error.value).splitlines()
    assert first == "the configuration has problems:"
    return [line.removeprefix("  ") for line in lines]


PHOTOS = {"source": "photos", "split": {"search": 600, "held_out": 700}}


def names_of_properties(node: object) -> set[str]:
    """Names of all properties of a schema."""
    if isinstance(node, list):
        return set().union(*map(names_of_properties, node))
    if not isinstance(node, dict):
        return set()
    return set(node.get("properties", {})).union(*map(names_of_properties, node.values()))


KEYS = names_of_properties(schema())
