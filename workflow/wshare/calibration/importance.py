"""Importance of each weight: the diagonal of the true Fisher information."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from wshare.errors import UserError
from wshare.models.forward import forward
from wshare.models.kinds.table import layer_of
from wshare.progress import PROGRESS
from wshare.tasks.task import Task, fitted


def fisher_diagonal(
    task: Task, model: nn.Module, batches: Iterable[torch.Tensor], layers: list[str], seed: int
) -> dict[str, np.ndarray]:
    """Mean squared gradient of the log-likelihood a weight: float32 arrays of the weights' shapes.

    F = E[(d log p(y|x) / dw)^2] with y drawn from the network's own output, which makes it the true
    Fisher information and not the empirical one (Kunstner et al. 2019, eq. 3 against eq. 5). Images are
    taken one at a time, since the square of a batch's summed gradient is not the sum of squares. UserError if the
    outputs have no gradient.
    """
    if hasattr(task, "fitted"):
        batches = list(batches)
        task = fitted(task, np.concatenate([forward(model, batch) for batch in batches]))
    generator = torch.Generator().manual_seed(seed)
    # A network may come frozen.
    parameters = [layer_of(model, name).weight.requires_grad_() for name in layers]
    sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    count = 0
    with differentiable(model):
        for batch in tqdm(batches, desc="importance", unit="batch", **PROGRESS):
            for image in batch:
                # A copy: a network may write into its input, and these images are needed again.
                likelihood = task.log_likelihood(model(image[None].clone()), generator)
                if not likelihood.requires_grad:
                    raise UserError(
                        "model: its outputs have no gradient, from which the importance of weights follows; take "
                        "torch.no_grad, detach and the like out of forward"
                    )
                # A layer that the output does not depend on has a gradient of zero.
                gradients = torch.autograd.grad(likelihood, parameters, materialize_grads=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.double() ** 2
                count += 1
    return {name: (total / count).float().numpy(force=True) for name, total in zip(layers, sums, strict=True)}


def differentiable(model: nn.Module) -> AbstractContextManager:
    """cuDNN has no gradient of recurrent layers in evaluation mode; torch's own kernels have."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


def total(importance: np.ndarray) -> float:
    """Sum over the weights of a layer."""
    # An order of its own: a sum in another order of memory differs in its last digits.
    return float(np.ascontiguousarray(importance).sum(dtype=np.float64))
