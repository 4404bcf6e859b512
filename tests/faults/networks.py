"""Networks of layers that a real one rarely has."""

import numpy as np
import torch
from torch import Tensor, nn


class Odd(nn.Module):
    """Constant, all-zero, empty, one-element, grouped, depthwise, tied and transposed weights, for images [1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.single = nn.Conv2d(1, 1, 1)
        self.constant = nn.Conv2d(1, 4, 3, padding=1)
        self.zero = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 8, 1, groups=2)
        self.bn = nn.BatchNorm2d(8)
        self.empty = nn.Linear(8, 0)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.transposed = nn.Linear(8, 8)
        self.transposed.weight = nn.Parameter(self.transposed.weight.detach().t())
        self.fc = nn.Linear(8, 10)
        with torch.no_grad():
            self.constant.weight.fill_(0.25)
            self.zero.weight.zero_()

    def forward(self, images: Tensor) -> Tensor:
        x = self.constant(images + self.single(images))
        x = x + self.zero(x) + self.depthwise(x)
        x = torch.relu(self.bn(self.grouped(x))).mean((2, 3))
        x = torch.cat([self.second(torch.relu(self.first(x))), self.empty(x)], 1)
        return self.fc(self.transposed(x))


class Few(nn.Module):
    """Layers of 1, 2 and 5 distinct weights, for images [1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.five = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)
        with torch.no_grad():
            for layer, count in ((self.one, 1), (self.two, 2), (self.five, 5)):
                values = torch.linspace(-0.2, 0.3, count + 1)[1:]
                layer.weight.copy_(values[torch.arange(layer.weight.numel()) * 7 % count].view_as(layer.weight))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.one(images))
        x = torch.relu(self.five(torch.relu(self.two(x))))
        return self.fc(x.mean((2, 3)))


def odd() -> nn.Module:
    """An `Odd` network with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Odd().eval()


def few() -> nn.Module:
    """A `Few` network with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Few().eval()


def further() -> tuple[np.ndarray, None]:
    """Noise, for calibration alone."""
    return np.random.default_rng(5).integers(0, 256, (6, 8, 8), dtype=np.uint8), None
