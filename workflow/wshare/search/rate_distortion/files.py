"""What the layers of a network are shared from: weights.h5 and calibration.h5."""

from pathlib import Path

import torch
from torch import nn

from wshare.artifacts.calibration import KIND as INPUTS
from wshare.artifacts.calibration import read_calibration
from wshare.artifacts.weights import KIND as WEIGHTS
from wshare.artifacts.weights import read_fisher
from wshare.files.hdf5 import content_hash
from wshare.models.folding import folded_norms
from wshare.search.rate_distortion.network import Network


def read_folds(
    model: nn.Module, extracted: Path, moments: Path, made_from: dict[str, str], sample: torch.Tensor, fold: bool
) -> list[Network]:
    """The network's layers, ready to be shared, by what each fold of images tells.

    `made_from` holds the hashes of model and images that both files must come from; `sample` [N, C, H, W] is an image
    or a few, to find the batch norms that can be folded, if `fold`.
    """
    fisher = read_fisher(extracted, made_from)
    names = list(fisher)
    folded = folded_norms(model, names, sample) if fold else {}
    return [Network.of(model, fisher, found, folded) for found in read_calibration(moments, names, made_from).halves]


def read_network(
    model: nn.Module, extracted: Path, moments: Path, made_from: dict[str, str], sample: torch.Tensor, fold: bool
) -> Network:
    """The same by what all folds tell together."""
    fisher = read_fisher(extracted, made_from)
    names = list(fisher)
    folded = folded_norms(model, names, sample) if fold else {}
    return Network.of(model, fisher, read_calibration(moments, names, made_from).together(), folded)


def network_hashes(extracted: Path, moments: Path) -> dict[str, str]:
    """Hash of both files' content and settings, for the recipe of a network that is shared from them."""
    return {
        "weights.h5": content_hash(extracted, WEIGHTS),
        "calibration.h5": content_hash(moments, INPUTS),
    }
