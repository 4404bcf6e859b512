"""Score a packed file on any folder of images: a command for users, which no rule calls."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from wshare.datasets import Dataset, open_dataset, prepared
from wshare.errors import UserError
from wshare.images import batch_size, normalised
from wshare.modelfile import read_model
from wshare.models import assign, build, fast
from wshare.packing import load_packed
from wshare.progress import PROGRESS
from wshare.scoring import compare, predict
from wshare.storage import read_json

SEED = 0


def evaluate(
    packed: Path,
    images: Path,
    spec: Path | None = None,
    weights: Path | None = None,
    labels: str | None = None,
    no_labels: bool = False,
    enlarge: bool = True,
    limit: int | None = None,
    threads: int = os.cpu_count() or 1,
) -> None:
    """Print the quality of a packed file, against the float32 network's, on a folder of images: one JSON object.

    The folder is one of images a class, as for source `imagefolder`; --labels is its class_map, a JSON file or
    `sorted`, not needed for ImageNet wnids. With --no-labels it takes all images at any depth, and quality is agreement
    with float32. --spec and --weights are model.json and weights.safetensors of the float32 network, by default those
    of the results folder that the packed file lies in. --no-enlarge only crops images that are smaller than the
    network's resize size. --limit takes so many images at random; --threads is all cores by default.
    """
    for flag, value in (("limit", limit), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value}: must be 1 or more")
    state = load_packed(packed)
    spec, weights = _model_files(packed, spec, weights)
    description = read_json(spec)
    compressed = fast(build(description))
    assign(compressed, state, str(packed))
    both = _Both(read_model(spec, weights), compressed).eval()
    sample = _Sample(_open(images, labels, no_labels), description, enlarge, limit)
    with sample.progress:
        reference, logits = np.split(predict(both, sample, threads), 2, axis=1)
    quality = compare(logits, reference, sample.labels, SEED)
    print(json.dumps({"packed": str(packed), "folder": str(images), **quality}, indent=2))


class _Both(nn.Module):
    """Logits of two networks side by side, [N, 2 classes]: each image is decoded once."""

    def __init__(self, reference: nn.Module, compressed: nn.Module):
        super().__init__()
        self.reference = reference
        self.compressed = compressed

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.reference(images), self.compressed(images)], 1)


class _Sample:
    """Images of a folder in random order, decoded batch by batch; what `predict` needs of an ImageFile."""

    def __init__(self, dataset: Dataset, description: dict, enlarge: bool, limit: int | None):
        self.chosen = np.random.default_rng(SEED).permutation(len(dataset.keys))[:limit]
        self.labels = None if dataset.labels is None else dataset.labels[self.chosen]
        if self.labels is not None and self.labels.max() >= description["classes"]:
            raise UserError(
                f"--labels: class index {self.labels.max()}, but the network has classes 0 to "
                f"{description['classes'] - 1}; correct the class_map, or give --no-labels"
            )
        self.progress = tqdm(total=len(self.chosen), desc="images", **PROGRESS)
        self._dataset, self._enlarge = dataset, enlarge
        self._preprocessing = description["preprocessing"]
        self._batch_size = batch_size(description["input"])

    def starts(self) -> range:
        return range(0, len(self.chosen), self._batch_size)

    def batch(self, start: int) -> Tensor:
        chosen = self.chosen[start : start + self._batch_size]
        pixels = np.stack(list(prepared(self._dataset, chosen, self._preprocessing, self._enlarge)))
        self.progress.update(len(chosen))
        return normalised(pixels, self._preprocessing["mean"], self._preprocessing["std"])


def _model_files(packed: Path, spec: Path | None, weights: Path | None) -> tuple[Path, Path]:
    """model.json and weights.safetensors: as given, or those of the results folder that the packed file lies in."""
    folder = Path(os.path.normpath(packed.parent / "../../model"))
    found = spec or folder / "model.json", weights or folder / "weights.safetensors"
    for flag, path in zip(("--spec", "--weights"), found, strict=True):
        if not path.is_file():
            raise UserError(f"{path}: no such file; {flag} gives the place of the float32 network's {path.name}")
    return found


def _open(folder: Path, labels: str | None, no_labels: bool) -> Dataset:
    if not folder.is_dir():
        raise UserError(f"--images {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if labels and no_labels:
        raise UserError("--labels and --no-labels: give one of the two")
    try:
        return open_dataset(
            {"source": "imagefolder", "path": str(folder), "class_map": labels, "labels": not no_labels}
        )
    except UserError as error:
        hint = "" if no_labels else " (--labels gives the class_map; --no-labels takes images as they lie)"
        raise UserError(f"{error}{hint}") from None
