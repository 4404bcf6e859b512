"""What the layers of a network are shared from: weights.h5 and inputs.h5."""

from pathlib import Path

import torch
from torch import nn

from wshare.compression import Network
from wshare.importance import total
from wshare.moments import read_moments, together
from wshare.weightfile import layer_names, read_layer


def read_folds(model: nn.Module, extracted: Path, moments: Path, sample: torch.Tensor, fold: bool) -> list[Network]:
    """The network's layers, ready to be shared, by what each fold of images tells.

    `sample` and `fold` as for `Network.of`.
    """
    names, fisher = _layers(extracted)
    return [Network.of(model, fisher, found, sample, fold) for found in read_moments(moments, names)]


def read_network(model: nn.Module, extracted: Path, moments: Path, sample: torch.Tensor, fold: bool) -> Network:
    """The same by what all folds tell together."""
    names, fisher = _layers(extracted)
    return Network.of(model, fisher, together(read_moments(moments, names)), sample, fold)


def _layers(extracted: Path) -> tuple[list[str], dict[str, float]]:
    """Names of the layers, and the sum of each one's importance."""
    names = layer_names(extracted)
    return names, {name: total(read_layer(extracted, name)[1]) for name in names}
