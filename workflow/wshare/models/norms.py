"""Batch norms of a network."""

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wshare.quantize.batch_norm import BatchNorm, norm_scale

# All of torch's, and those of libraries that do without its check of dimensions. Instance norms, whose statistics are
# those of each image, are no subclasses.
BATCH_NORMS = (_BatchNorm,)


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Batch norms of a model by module name; those without running statistics or bias alone stay as they are."""
    return {
        name: batch_norm_of(module)
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS)
        and module.track_running_stats
        and (module.weight is None) == (module.bias is None)
    }


def batch_norm_of(module: nn.Module) -> BatchNorm:
    """Scale and shift of a module in evaluation mode."""
    weight = module.weight.numpy(force=True) if module.affine else None
    mean, variance = (_double(statistic) for statistic in (module.running_mean, module.running_var))
    scale = norm_scale(variance, weight, module.eps)
    shift = (_double(module.bias) if module.affine else 0.0) - mean * scale
    return BatchNorm(scale.astype(np.float32), shift.astype(np.float32), module.eps, module.affine)


def _double(values: Tensor) -> np.ndarray:
    return values.numpy(force=True).astype(np.float64)
