"""List every parameter of the network once: shared or kept, and why."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.files.sealed import read_json, write_json
from wshare.models.layers import inspect


def inspect_model(settings: dict, name: str, spec: Path, weights: Path, layers: Path) -> None:
    """Write layers.json; `name` is the model's name in the configuration, for messages."""
    description = read_json(spec)
    dropped = description["dropped"]
    model = read_model(spec, weights)
    table = inspect(model, dropped, settings["include"], settings["exclude"], f"models.{name}.layers")
    write_json(layers, {"model": description["sha256"]} | table)
    kept = sum(parameter["status"] == "kept" for parameter in table["parameters"])
    print(f"{len(table['layers'])} layers to share, {kept} parameters kept, {len(dropped)} parts dropped")
