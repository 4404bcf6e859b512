"""Fetch a trained network and write it in one form, whatever its source."""

from pathlib import Path

from wshare.artifacts.model import write_model
from wshare.models.registry import fetch
from wshare.tasks.description import described


def fetch_model(settings: dict, cache: Path, weights: Path, spec: Path) -> None:
    """Write weights.safetensors and model.json of the network that the settings name.

    `cache` is the folder for downloads.
    """
    write_model(described(fetch(settings, cache), settings), weights, spec)
