"""A network whose layers are named like columns, keys and devices, and its images; nothing here is the package's."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

CONVOLUTIONS = ("low", "kl", "bits", "images", "slope", "chosen", "layer", "index", "model")
LINEAR = ("k", "con", "weight")
NAMES = CONVOLUTIONS + LINEAR
IMAGES = 600


class Named(nn.Module):
    """Twelve layers, for grey images of 8 x 8."""

    def __init__(self):
        super().__init__()
        for place, name in enumerate(CONVOLUTIONS):
            groups = 8 if name == "images" else 1
            self.add_module(name, nn.Conv2d(1 if place == 0 else 8, 8, 3, padding=1, groups=groups))
        for name, inputs, outputs in zip(LINEAR, (32, 16, 16), (16, 16, 10), strict=True):
            self.add_module(name, nn.Linear(inputs, outputs))

    def forward(self, images: Tensor) -> Tensor:
        found = self.low(images)
        for name in CONVOLUTIONS[1:]:
            found = found + getattr(self, name)(found.relu())
        found = nn.functional.adaptive_avg_pool2d(found, 2).flatten(1)
        return self.weight(self.con(self.k(found).relu()).relu())


def network() -> nn.Module:
    """With seeded random weights, so that its outputs differ from image to image."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = Named().eval()
        # Small differences between images are what its prediction rests on.
        made.weight.weight *= 100
        made.weight.bias -= made(torch.from_numpy(pixels()).float()[:, None] / 255).mean(0)
        return made


def pixels() -> np.ndarray:
    """Images of digits: uint8 [N, 8, 8]."""
    return (load_digits().images[:IMAGES] * 15.9).astype(np.uint8)


def digits() -> tuple[np.ndarray, None]:
    """Images without labels."""
    return pixels(), None
