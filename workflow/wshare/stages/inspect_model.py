"""List every parameter of the network once: shared or kept, and why."""

from pathlib import Path

import torch

from wshare.artifacts.model import read_model
from wshare.files.sealed import read_json, write_json
from wshare.models.coverage import told
from wshare.models.layers import Choice, inspect


def inspect_model(settings: dict, model: str, spec: Path, weights: Path, layers: Path) -> None:
    """Write layers.json; `model` is the model's name in the configuration, for messages."""
    description = read_json(spec)
    dropped = description["dropped"]
    network = read_model(spec, weights)
    choice = Choice(settings["include"], settings["exclude"], f"models.{model}.layers")
    table = inspect(network, dropped, choice, torch.zeros(2, *description["input"]))
    write_json(layers, {"model": description["sha256"]} | table)
    kept = sum(parameter["status"] == "kept" for parameter in table["parameters"])
    print(f"{len(table['layers'])} layers to share, {kept} parameters kept, {len(dropped)} parts dropped")
    print(told(table["parameters"]))
