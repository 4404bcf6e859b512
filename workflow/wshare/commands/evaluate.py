"""`wshare evaluate`: a packed file scored on any folder of images."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from wshare.commands.common import (
    CORES,
    Arguments,
    ClassMap,
    Device,
    Enlarge,
    Folder,
    Key,
    Limit,
    NoLabels,
    Preprocessing,
    Spec,
    Task,
    Threads,
    Weights,
    check_at_least,
    labelled,
    network_of,
    open_folder,
)
from wshare.commands.tables import print_json
from wshare.data.dataset import Dataset
from wshare.data.devices import device_named, exact
from wshare.data.images import batch_size, normalised
from wshare.data.masks import labels_of
from wshare.data.prepare import prepared
from wshare.errors import UserError
from wshare.evaluation.baseline import check_accuracy, check_repeats
from wshare.evaluation.predict import predict
from wshare.evaluation.verdict import compare
from wshare.models.forward import forward
from wshare.models.outputs import with_logits
from wshare.models.registry import build
from wshare.models.state import fast, load_state
from wshare.packed.format import load_packed, read_index
from wshare.packed.hashes import weights_hash
from wshare.progress import PROGRESS
from wshare.tasks.table import task_of

SEED = 0


def evaluate(
    *,
    packed: Annotated[Path, "packed file"],
    images: Folder,
    architecture: Annotated[
        str | None,
        "torchvision name, timm:<name>, python:<module>:<function>, onnx:<file> or torch_export:<file>, "
        "for a file outside a results folder",
    ] = None,
    spec: Spec = None,
    weights: Weights = None,
    key: Key = None,
    task: Task = None,
    class_map: ClassMap = None,
    no_labels: NoLabels = False,
    enlarge: Enlarge = True,
    limit: Limit = None,
    arguments: Arguments = {},  # noqa: B006
    preprocessing: Preprocessing = {},  # noqa: B006
    threads: Threads = CORES,
    device: Device = None,
) -> None:
    """Print the quality of a packed file on a folder of images, against the float32 network, as JSON.

    Without --architecture and --spec the network is that of the results folder that the packed file lies in.

    Example:
      wshare evaluate --packed net.wshare.safetensors --architecture mobilenet_v2 --weights w.safetensors \\
          --images photos --class-map sorted
    """
    check_at_least(1, limit=limit, threads=threads)
    place, state = device_named(device), load_packed(packed)
    if architecture is None:
        spec = spec or Path(os.path.normpath(packed.parent / "../../model/model.json"))
    reference, description = network_of(architecture, spec, weights, key, arguments, preprocessing, task)
    reference = with_logits(fast(reference), description)
    _check_reference(packed, reference)
    compressed = with_logits(build(description), description)
    load_state(compressed, state, str(packed))
    both = fast(_Both(reference, compressed).eval(), place)
    dataset = labelled(open_folder(images, class_map, no_labels), description)
    sample, kind = _Sample(dataset, description, enlarge, limit, place), task_of(description)
    kind.check_labels(sample.labels, description, "--images")
    first = sample.images(0, min(2, sample.batch_size))
    with sample.progress, exact(place):
        check_repeats(forward(reference, first), forward(reference, first), description["name"])
        outputs = predict(both, sample, threads)
    check_accuracy(kind, outputs[:, 0], sample.labels, description.get("categories"), str(images))
    quality = compare(kind, outputs[:, 1], outputs[:, 0], sample.labels)
    print_json({"packed": str(packed), "folder": str(images), **quality})


class _Both(nn.Module):
    """Outputs of two networks side by side, [N, 2, ...]: each image is decoded once."""

    def __init__(self, reference: nn.Module, compressed: nn.Module):
        super().__init__()
        self.reference = reference
        self.compressed = compressed

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.reference(images.clone()), self.compressed(images)], 1)


class _Sample:
    """Images of a folder in random order, decoded batch by batch; what `predict` needs of an ImageFile."""

    def __init__(self, dataset: Dataset, description: dict, enlarge: bool, limit: int | None, device: torch.device):
        self.chosen = np.random.default_rng(SEED).permutation(len(dataset.keys))[:limit]
        self.labels = labels_of(dataset, self.chosen, description, enlarge)
        self.progress = tqdm(total=len(self.chosen), desc="images", **PROGRESS)
        self._dataset, self._enlarge, self._device = dataset, enlarge, device
        self._preprocessing = description["preprocessing"]
        any_size = self._preprocessing["crop"] is None
        self.batch_size = 1 if any_size else batch_size(description["input"])

    def starts(self) -> range:
        return range(0, len(self.chosen), self.batch_size)

    def batch(self, start: int) -> Tensor:
        images = self.images(start, start + self.batch_size)
        self.progress.update(len(images))
        return images

    def images(self, start: int, stop: int) -> Tensor:
        """Images as the network takes them, float32 [N, C, H, W]."""
        chosen = self.chosen[start:stop]
        pixels = np.stack(list(prepared(self._dataset, chosen, self._preprocessing, self._enlarge)))
        return normalised(pixels, self._preprocessing["mean"], self._preprocessing["std"]).to(self._device)


def _check_reference(packed: Path, reference: nn.Module) -> None:
    """UserError unless the packed file was made from this network, as far as it tells."""
    index, state = read_index(packed), reference.state_dict()
    if "float32" not in index or not index["shared"].keys() <= state.keys():
        # Older files do not tell; names that are missing are told by name when weights are assigned.
        return
    found = weights_hash({name: tensor.numpy() for name, tensor in state.items()}, index["shared"])
    # Files keep as much of the hash as tells one network from another.
    if not found.startswith(index["float32"]):
        raise UserError(
            f"{packed}: made from other float32 weights than it is to be compared with; give those with --weights"
        )
