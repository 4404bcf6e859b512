"""Gradient calibration: the numbers beside the indices, taught by the float32 network's outputs.

Shared values, shifts of folded batch norms and biases go down the gradient of the divergence from the float32 network:
no labels are read, and indices and scales of rows stay. It is distillation (Hinton et al. 2015) into the few numbers
that a packed file holds anyway. By Adam (Kingma & Ba 2015), whose steps shrink to 0 along a straight line.

Each number moves in units of one over the root of its Fisher information, in which a step costs about as much
divergence whatever number takes it: n numbers that each err by s such units lose n s^2 / 2 nats. Steps are a share of
the error at which that is what the network loses now.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from wshare.calibration.importance import differentiable
from wshare.data.images import Images
from wshare.models.layers import replaced
from wshare.progress import PROGRESS
from wshare.quantize.codebooks import row_scale
from wshare.quantize.layer import Quantised
from wshare.search.method import Setting, SettingError
from wshare.search.rate_distortion.network import Network
from wshare.tasks.task import Task

# The first step, as a share of the error that costs what the network loses. Tuned on resnet_ds, lenet5 and
# EfficientNet-Lite0: a third of it and three times as much are nearly as good.
FIRST_STEP = 0.02
# Images, at most, that tell the Fisher information, and the share of its mean that is added: a number that they tell
# nothing of shall not move far.
FISHER_IMAGES, DAMPING = 64, 0.1


@dataclass(frozen=True)
class _Numbers:
    """Numbers of a layer, float32 [n], and the tensor of the state dict that follows from them."""

    layer: str
    tensor: str
    start: Tensor
    made: Callable[[Tensor], Tensor]
    kept: Callable[[Quantised, np.ndarray], Quantised]


def calibrated(
    task: Task,
    model: nn.Module,
    network: Network,
    layers: Mapping[str, Quantised],
    images: Images,
    reference: np.ndarray,
    epochs: int,
    seed: int,
) -> dict[str, Quantised]:
    """The layers with numbers that so many passes over the images have taught.

    `reference` [N, ...] holds the float32 network's outputs for these images. On a CPU the result is the same to the
    bit for the same seed and one torch thread.
    """
    numbers = [own for name, layer in layers.items() for own in _numbers(model, network, name, layer)]
    with replaced(model, network.compressed(layers).tensors()), torch.enable_grad(), differentiable(model):
        units, kl = _told(task, model, images, reference, numbers, seed)
        count = sum(unit.numel() for unit in units)
        moves = [torch.zeros_like(unit, requires_grad=True) for unit in units]
        first = FIRST_STEP * math.sqrt(2 * kl / count)
        starts = list(images.starts())
        optimizer = torch.optim.Adam(moves, lr=first)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(starts))
        generator = torch.Generator().manual_seed(seed)
        with tqdm(total=epochs * len(images), desc="calibrate", unit="image", **PROGRESS) as progress:
            for place in [place for _ in range(epochs) for place in torch.randperm(len(starts), generator=generator)]:
                batch = images.batch(starts[place])
                values = [own.start + move * unit for own, move, unit in zip(numbers, moves, units, strict=True)]
                outputs = _outputs(model, numbers, values, batch)
                told = _tensor(reference[starts[place] : starts[place] + len(batch)], outputs)
                loss = task.divergence(outputs, told)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(len(batch))
    found = dict(layers)
    for own, move, unit in zip(numbers, moves, units, strict=True):
        found[own.layer] = own.kept(found[own.layer], (own.start + move * unit).double().numpy(force=True))
    return found


def recorded(network: Network, layers: Mapping[str, Quantised]) -> dict[str, Setting]:
    """What recipe.json holds of the numbers of each layer, as `recalled` reads it."""
    return {
        name: {
            "numbers": {
                "codebook": layer.shared.codebook.tolist(),
                "step": layer.shared.step,
                "shift": None if layer.norm is None else layer.norm.steps.tolist(),
                "correction": layer.correction.tolist() if _has_bias(network, name, layer) else None,
            }
        }
        for name, layer in layers.items()
    }


def recalled(network: Network, name: str, layer: Quantised, setting: Setting) -> Quantised:
    """The layer with the numbers that its setting records; SettingError if they are none of this layer."""
    found = setting.get("numbers")
    if not _fit(network, name, layer, found):
        raise SettingError(f"layer {name!r}: numbers are missing, or those of another layer")
    layer = layer.with_codebook(np.array(found["codebook"], np.float32), found["step"])
    if found["shift"] is not None:
        layer = layer.shifted(np.array(found["shift"], np.int32))
    return layer if found["correction"] is None else replace(layer, correction=np.array(found["correction"]))


def _has_bias(network: Network, name: str, layer: Quantised) -> bool:
    return layer.norm is None and name in network.biases


def _fit(network: Network, name: str, layer: Quantised, numbers: object) -> bool:
    if not isinstance(numbers, dict) or numbers.keys() != {"codebook", "step", "shift", "correction"}:
        return False
    lengths = {
        "codebook": len(layer.shared.codebook),
        "step": None if layer.shared.step is None else 1,
        "shift": None if layer.norm is None else len(layer.norm.steps),
        "correction": len(layer.correction) if _has_bias(network, name, layer) else None,
    }
    given = numbers | ({} if numbers["step"] is None else {"step": [numbers["step"]]})
    if not all(_are_numbers(given[key], length) for key, length in lengths.items()):
        return False
    steps = numbers["shift"] or []
    return (np.diff(numbers["codebook"]) > 0).all() and all(type(step) is int and abs(step) < 1 << 31 for step in steps)


def _are_numbers(values: object, count: int | None) -> bool:
    """Whether these are so many finite numbers, or None where there are none."""
    if count is None or not isinstance(values, list):
        return values is count
    return len(values) == count and all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _numbers(model: nn.Module, network: Network, name: str, layer: Quantised) -> list[_Numbers]:
    """Numbers of a layer that may move: its shared values, or their step, and its shift or bias."""
    device = next(model.parameters()).device
    found = [_codebook(network.tensors[name], name, layer, device)]
    if layer.norm is not None and f"{network.norms[name]}.bias" in dict(model.named_parameters()):
        found.append(_shift(f"{network.norms[name]}.bias", name, layer, device))
    elif _has_bias(network, name, layer):
        found.append(_bias(network.bias_names[name], name, layer, network.biases[name], device))
    return found


def _codebook(tensor: str, name: str, layer: Quantised, device: torch.device) -> _Numbers:
    shared = layer.shared
    indices = torch.from_numpy(shared.indices.astype(np.int32)).to(device).flatten()
    scales = torch.tensor(shared.layout.per_output(_scales(layer), shared.indices.shape), device=device)
    codebook = torch.from_numpy(shared.codebook).to(device)
    # Of a grid all values move with its step. A value of exactly 0 stays: the zeros of a pruned network may hang on it.
    grid = shared.step is not None
    start, spread = (torch.ones(1, device=device), codebook) if grid else (codebook, (codebook != 0).float())

    def made(values: Tensor) -> Tensor:
        return (values * spread).index_select(0, indices).view(shared.indices.shape) * scales

    def kept(own: Quantised, values: np.ndarray) -> Quantised:
        return own.moved(values * spread.double().numpy(force=True))

    return _Numbers(name, tensor, start, made, kept)


def _shift(tensor: str, name: str, layer: Quantised, device: torch.device) -> _Numbers:
    unit = torch.from_numpy(np.float32(layer.norm.unit) * _scales(layer)).to(device)
    return _Numbers(
        name,
        tensor,
        torch.from_numpy(layer.norm.steps.astype(np.float32)).to(device),
        lambda values: values * unit,
        lambda own, values: own.shifted(np.rint(values).astype(np.int32)),
    )


def _bias(tensor: str, name: str, layer: Quantised, bias: np.ndarray, device: torch.device) -> _Numbers:
    return _Numbers(
        name,
        tensor,
        torch.from_numpy((bias + layer.correction).astype(np.float32)).to(device),
        lambda values: values,
        lambda own, values: replace(own, correction=values - bias),
    )


def _scales(layer: Quantised) -> np.ndarray:
    """The scale of each output, float32 [outputs]."""
    exponents = layer.shared.exponents
    return np.ones(len(layer.correction), np.float32) if exponents is None else row_scale(exponents)


def _outputs(model: nn.Module, numbers: Sequence[_Numbers], values: Sequence[Tensor], batch: Tensor) -> Tensor:
    tensors = {own.tensor: own.made(value) for own, value in zip(numbers, values, strict=True)}
    # A copy: a network may write into its input, and these images are needed again.
    return functional_call(model, tensors, (batch.clone(),))


def _told(
    task: Task, model: nn.Module, images: Images, reference: np.ndarray, numbers: Sequence[_Numbers], seed: int
) -> tuple[list[Tensor], float]:
    """What few images tell: the unit of each number, one over the root of its Fisher information, and the divergence.

    Units are 0 of a tensor that the output does not follow. The divergence, in nats, is that before any teaching.
    """
    generator, kl = torch.Generator().manual_seed(seed), 0.0
    values = [own.start.clone().requires_grad_() for own in numbers]
    squares = [torch.zeros_like(value) for value in values]
    few = images.part(0, min(FISHER_IMAGES, len(images)))
    for start in few.starts():
        batch = few.batch(start)
        for place, image in enumerate(batch, start):
            outputs = _outputs(model, numbers, values, image[None])
            kl += float(task.divergence(outputs.detach(), _tensor(reference[place : place + 1], outputs))) / len(few)
            gradients = torch.autograd.grad(task.log_likelihood(outputs, generator), values, materialize_grads=True)
            for square, gradient in zip(squares, gradients, strict=True):
                square += gradient**2 / len(few)
    damped = [square + DAMPING * square.mean() for square in squares]
    return [torch.where(square > 0, square.rsqrt(), 0.0) for square in damped], kl


def _tensor(reference: np.ndarray, outputs: Tensor) -> Tensor:
    """The float32 network's outputs, as the other ones are: a network may squeeze those of a single image."""
    return torch.from_numpy(reference).to(outputs.device).reshape(outputs.shape)
