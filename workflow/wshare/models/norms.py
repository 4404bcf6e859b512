"""Batch norms of a network."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
from wshare.quantize.batch_norm import BatchNorm


def batch_norms(model: "nn.Module") -> dict[str, BatchNorm]:
    """Batch norms of a model by module name; those without running statistics or bias alone stay as they are."""
    from wshare.models.layers import BATCH_NORMS

    return {
        name: BatchNorm.of(module)
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS)
        and module.track_running_stats
        and (module.weight is None) == (module.bias is None)
    }
