"""Arguments that stages take together; the command line gives each field a flag of its own."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelFiles:
    """The float32 network: model.json and weights.safetensors."""

    spec: Path
    weights: Path


@dataclass(frozen=True)
class Samples:
    """Images that calibration looks at: search images, and further ones, if any."""

    search_images: Path
    calibration_images: Path | None = None


@dataclass(frozen=True)
class Names:
    """What a result is called in the configuration."""

    model: str
    search: str
    dataset: str


@dataclass(frozen=True)
class Machine:
    """What a job may take: threads, and GPUs, of which none or one is used."""

    threads: int
    gpus: int


@dataclass(frozen=True)
class SearchedFiles:
    """What a search writes: front.csv, losses.csv and recipe.json."""

    front: Path
    losses: Path
    recipe: Path


@dataclass(frozen=True)
class PackedFiles:
    """What packing writes: packed.safetensors, dense.safetensors and sizes.json."""

    packed: Path
    dense: Path
    sizes: Path


@dataclass(frozen=True)
class CompressedFiles:
    """What a search and packing leave: packed.safetensors, recipe.json and sizes.json."""

    packed: Path
    recipe: Path
    sizes: Path


@dataclass(frozen=True)
class Verdict:
    """What the evaluation of a packed file writes: metrics.json, predictions.csv and timings.json."""

    metrics: Path
    predictions: Path
    timings: Path
