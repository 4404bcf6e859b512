"""One forward pass."""

import numpy as np
import torch
from torch import nn


def forward(model: nn.Module, batch: torch.Tensor) -> np.ndarray:
    """Outputs of one batch, float32 [B, ...]; the batch stays as it is."""
    with torch.inference_mode():
        # A copy: a network may normalise its input in place, and these images are needed again.
        output = model(batch.clone()).float().numpy(force=True)
    # A network that squeezes its output leaves no axis of a single image.
    return output[None] if output.ndim == 0 else output
