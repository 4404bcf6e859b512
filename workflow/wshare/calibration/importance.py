"""Importance of each weight: the diagonal of the true Fisher information."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

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
    task: Task, model: nn.Module, batches: Iterable[torch.Tensor], layers: list[str], seed: int, threads: int = 1
) -> dict[str, np.ndarray]:
    """Mean squared gradient of the log-likelihood a weight: float32 arrays of the weights' shapes.

    F = E[(d log p(y|x) / dw)^2] with y drawn from the network's own output, which makes it the true
    Fisher information and not the empirical one (Kunstner et al. 2019, eq. 3 against eq. 5). Images are
    taken one at a time, since the square of a batch's summed gradient is not the sum of squares; on several `threads`
    they run side by side, and give the same to the bit. UserError if the outputs have no gradient.
    """
    if hasattr(task, "fitted"):
        batches = list(batches)
        task = fitted(task, np.concatenate([forward(model, batch) for batch in batches]))
    generator = torch.Generator().manual_seed(seed)
    # A network may come frozen.
    parameters = [layer_of(model, name).weight.requires_grad_() for name in layers]
    sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    count = 0
    # A GPU takes one image at a time.
    threads = 1 if any(parameter.is_cuda for parameter in parameters) else threads

    def output(image: torch.Tensor) -> torch.Tensor:
        # A copy: a network may write into its input, and these images are needed again.
        return model(image[None].clone())

    def gradients(likelihood: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # A layer that the output does not depend on has a gradient of zero.
        return torch.autograd.grad(likelihood, parameters, materialize_grads=True)

    def add(place: int) -> None:
        for gradient in found:
            sums[place] += gradient[place].double() ** 2

    with differentiable(model), ThreadPoolExecutor(threads) as pool:
        for images in _some(tqdm(batches, desc="importance", unit="batch", **PROGRESS), threads):
            # Labels are drawn in the order of the images, and squares added in it.
            likelihoods = [task.log_likelihood(given, generator) for given in pool.map(output, images)]
            if not all(likelihood.requires_grad for likelihood in likelihoods):
                raise UserError(
                    "model: its outputs have no gradient, from which the importance of weights follows; take "
                    "torch.no_grad, detach and the like out of forward"
                )
            found = list(pool.map(gradients, likelihoods))
            list(pool.map(add, range(len(sums))))
            count += len(images)
    return {name: (total / count).float().numpy(force=True) for name, total in zip(layers, sums, strict=True)}


def _some(batches: Iterable[torch.Tensor], count: int) -> Iterator[list[torch.Tensor]]:
    """The images of all batches, so many at a time."""
    images = (image for batch in batches for image in batch)
    while some := list(islice(images, count)):
        yield some


def differentiable(model: nn.Module) -> AbstractContextManager:
    """cuDNN has no gradient of recurrent layers in evaluation mode; torch's own kernels have."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


def total(importance: np.ndarray) -> float:
    """Sum over the weights of a layer."""
    # An order of its own: a sum in another order of memory differs in its last digits.
    return float(np.ascontiguousarray(importance).sum(dtype=np.float64))
