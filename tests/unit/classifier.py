"""A small network that is right on most of its images, and the images: what baselines are checked with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

CLASSES, SIDE = 6, 8
MEAN, SCALE = 0.25, 2.0


def images(count: int, seed: int = 0, noise: float = 3.0) -> tuple[Tensor, np.ndarray]:
    """Images [N, 1, 8, 8], each a pattern of its class under noise, and the classes, int64 [N]."""
    patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return patterns[labels] + noise * torch.randn(count, 1, SIDE, SIDE, generator=generator), labels.numpy()


def network() -> nn.Module:
    """Convolution and linear layer with random features, of which the last layer is fitted to other images."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, CLASSES))
        pixels, labels = images(1500, seed=1)
        features = model[:3](pixels).double()
        wanted = nn.functional.one_hot(torch.from_numpy(labels), CLASSES).double()
        gram = features.T @ features + 200 * torch.eye(512, dtype=torch.float64)
        # Sure of its predictions, so that sharing its weights makes a difference.
        model[3].weight.copy_(6 * torch.linalg.solve(gram, features.T @ wanted).T)
        model[3].bias.zero_()
    return model.eval()


class InPlace(nn.Sequential):
    """The network for images that it normalises itself, in their own memory or in another."""

    def __init__(self, writes: bool):
        super().__init__(network())
        self.writes = writes

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.sub_(MEAN).div_(SCALE) if self.writes else (pixels - MEAN) / SCALE
        return self[0](pixels)


class Dropping(nn.Sequential):
    """The network with a dropout that does not end in evaluation mode."""

    def __init__(self):
        super().__init__(network())

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.dropout(self[0](pixels), 0.1)


class AutoEncoder(nn.Module):
    """Two layers over one memory."""

    def __init__(self, same: bool):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.head = network()
        with torch.no_grad():
            self.encoder.weight.copy_(
                torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
            )
            weight = self.encoder.weight.data
        self.decoder.weight = nn.Parameter(weight if same else weight.t())
        self.same = same

    def forward(self, pixels: Tensor) -> Tensor:
        code = self.encoder(pixels.flatten(1))
        code = code @ self.decoder.weight if self.same else self.decoder(code)
        return self.head(code.view(pixels.shape))


def over_one_memory() -> nn.Module:
    return AutoEncoder(same=True)


class Spare(InPlace):
    """A layer that is never called, behind a forward that writes into its input."""

    def __init__(self):
        super().__init__(True)
        self.spare = nn.Linear(3, 3)


def in_place() -> nn.Module:
    return InPlace(True)


def probable() -> nn.Module:
    return nn.Sequential(network(), nn.Softmax(1))


def yes_or_no() -> nn.Module:
    """One output an image."""
    return nn.Sequential(network(), nn.Linear(CLASSES, 1))


# Of images as files: grey values, of which a network sees the images above.
PREPROCESSING = {"channels": 1, "resize": None, "crop": SIDE, "interpolation": "bilinear"}
PREPROCESSING |= {"mean": [128 / 255], "std": [20 / 255]}
FOLDERS = tuple(f"class {index}" for index in range(CLASSES))


def write_folders(root: Path, count: int, names: Sequence[str] = FOLDERS, seed: int = 0) -> None:
    """Images as PNG files, in one folder a class."""
    pixels, labels = images(count, seed)
    grey = (pixels[:, 0] * 20 + 128).round().clamp(0, 255).byte().numpy()
    for place, label in enumerate(labels):
        path = root / names[label] / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(grey[place]).save(path)


def grey() -> tuple[np.ndarray, None]:
    """80 images, of which each is there twice, without labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE), dtype=np.uint8)
    return np.concatenate([pixels, pixels]), None
