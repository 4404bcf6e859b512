"""List every parameter of the network once: shared or kept, and why."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.files.sealed import read_json, write_json
from wshare.models.layers import inspect


def inspect_model(settings: dict, model: str, spec: Path, weights: Path, layers: Path) -> None:
    """Write layers.json; `model` is the model's name in the configuration, for messages."""
    description = read_json(spec)
    dropped = description["dropped"]
    network = read_model(spec, weights)
    table = inspect(network, dropped, settings["include"], settings["exclude"], f"models.{model}.layers")
    write_json(layers, {"model": description["sha256"]} | table)
    kept = sum(parameter["status"] == "kept" for parameter in table["parameters"])
    print(f"{len(table['layers'])} layers to share, {kept} parameters kept, {len(dropped)} parts dropped")
