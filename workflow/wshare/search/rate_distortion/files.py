"""What the layers of a network are shared from: weights.h5 and calibration.h5."""

from pathlib import Path

import torch
from torch import nn

from wshare.artifacts.calibration import KIND as INPUTS
from wshare.artifacts.calibration import read_statistics
from wshare.artifacts.weights import KIND as WEIGHTS
from wshare.artifacts.weights import layer_names, read_layer
from wshare.calibration.importance import total
from wshare.files.hdf5 import content_hash
from wshare.models.folding import folded_norms
from wshare.quantize.statistics import together
from wshare.search.rate_distortion.network import Network


def read_folds(
    model: nn.Module, extracted: Path, moments: Path, made_from: dict[str, str], sample: torch.Tensor, fold: bool
) -> list[Network]:
    """The network's layers, ready to be shared, by what each fold of images tells.

    `made_from` holds the hashes of model and images that both files must come from; `sample` [N, C, H, W] is an image
    or a few, to find the batch norms that can be folded, if `fold`.
    """
    names, fisher = _layers(extracted, made_from)
    folded = folded_norms(model, names, sample) if fold else {}
    return [Network.of(model, fisher, found, folded) for found in read_statistics(moments, names, made_from)]


def read_network(
    model: nn.Module, extracted: Path, moments: Path, made_from: dict[str, str], sample: torch.Tensor, fold: bool
) -> Network:
    """The same by what all folds tell together."""
    names, fisher = _layers(extracted, made_from)
    folded = folded_norms(model, names, sample) if fold else {}
    return Network.of(model, fisher, together(read_statistics(moments, names, made_from)), folded)


def network_hashes(extracted: Path, moments: Path) -> dict[str, str]:
    """Hash of both files' content and settings, for the recipe of a network that is shared from them."""
    return {
        "weights.h5": content_hash(extracted, WEIGHTS),
        "calibration.h5": content_hash(moments, INPUTS),
    }


def _layers(extracted: Path, made_from: dict[str, str]) -> tuple[list[str], dict[str, float]]:
    """Names of the layers, and the sum of each one's importance."""
    names = layer_names(extracted)
    return names, {name: total(read_layer(extracted, name, made_from)[1]) for name in names}
