"""One forward pass."""

import numpy as np
import torch
from torch import nn


def forward(model: nn.Module, batch: torch.Tensor) -> np.ndarray:
    """Outputs of one batch, float32 [B, ...]."""
    with torch.inference_mode():
        return model(batch).float().numpy(force=True)
