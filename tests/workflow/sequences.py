"""A network of an LSTM, a GRU and an attention, and its images; nothing here is the package's."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

IMAGES = 300


class Reader(nn.Module):
    """Reads the columns of grey images of 8 x 8 one by one."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 12, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(24, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        found, _ = self.gru(self.rnn(images.squeeze(1).transpose(1, 2))[0])
        return self.head(self.attention(found, found, found)[0].mean(1))


def network() -> nn.Module:
    """With seeded random weights, so that its outputs differ from image to image."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = Reader().eval()
        # Small differences between images are what its prediction rests on.
        made.head.weight *= 100
        made.head.bias -= made(torch.from_numpy(pixels()).float()[:, None] / 255).mean(0)
        return made


def pixels() -> np.ndarray:
    """Images of digits: uint8 [N, 8, 8]."""
    return (load_digits().images[:IMAGES] * 15.9).astype(np.uint8)


def further() -> tuple[np.ndarray, None]:
    """Other images of digits."""
    return (load_digits().images[IMAGES : IMAGES + 40] * 15.9).astype(np.uint8), None


def digits() -> tuple[np.ndarray, None]:
    """Images without labels."""
    return pixels(), None
