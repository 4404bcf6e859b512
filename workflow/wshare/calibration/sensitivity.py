"""Loss of quality when one layer alone is shared: the profile of a group of layers."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from wshare.artifacts.clusters import Clusters
from wshare.data.images import Images
from wshare.models.forward import forward
from wshare.models.kinds.table import layer_of
from wshare.models.layers import replaced
from wshare.progress import PROGRESS
from wshare.quantize.codebooks import nearest_indices
from wshare.tasks.task import Score, Task


@dataclass(frozen=True)
class Probe:
    """Quality of the network with one layer shared with k values, the others float32."""

    layer: str
    k: int
    inertia: float
    weighted_inertia: float
    score: Score


def row(task: Task, probe: Probe, reference: Score) -> dict:
    """One row of sensitivity.csv; `reference` is the float32 network's score on the same images."""
    score = probe.score
    quality = {
        "relative_quality": score.quality / reference.quality if reference.quality else 0.0,
        "kl": score.kl,
    } | score.figures
    return {
        "layer": probe.layer,
        "k": probe.k,
        "inertia": probe.inertia,
        "weighted_inertia": probe.weighted_inertia,
        **{column: quality[column] for column in task.PROFILED},
        "images": len(score.scores),
    }


def profile(
    task: Task, model: nn.Module, layers: list[Clusters], images: Images, reference: np.ndarray, prefix: bool = True
) -> list[Probe]:
    """One probe for every layer and each of its candidates, on all images.

    `layers` are in the network's order; `reference` holds the float32 outputs [N, ...]. With `prefix`, what
    comes before a layer is computed once a batch for all its candidates, where the network is a chain of modules
    there; the result is the same to the bit.
    """
    with tqdm(total=len(layers) * len(images), desc="profile", unit="image", **PROGRESS) as progress:
        per_layer = (_profile_layer(task, model, layer, images, reference, prefix, progress) for layer in layers)
        return [probe for probes in per_layer for probe in probes]


def _profile_layer(
    task: Task, model: nn.Module, layer: Clusters, images: Images, reference: np.ndarray, prefix: bool, progress: tqdm
) -> Iterator[Probe]:
    found = layer_of(model, layer.layer)
    weight = found.weight.numpy(force=True)
    codebooks = {k: layer.sweep.codebook(k) for k in layer.candidates}
    # Indices of one byte where that is enough: the largest layers have 100 million weights.
    indices = {
        k: nearest_indices(weight, codebook).astype(np.min_scalar_type(k - 1), copy=False)
        for k, codebook in codebooks.items()
    }
    outputs = {k: np.empty_like(reference) for k in codebooks}
    chain = chain_before(model, layer.layer, images.batch(0)[:1]) if prefix else []
    for start in images.starts():
        batch = images.batch(start)
        with resumed(model, chain, batch) if chain else nullcontext():
            for k, codebook in codebooks.items():
                with replaced(model, {found.tensor: codebook[indices[k]]}):
                    outputs[k][start : start + len(batch)] = forward(model, batch)
        progress.update(len(batch))
    for k in codebooks:
        inertia, weighted = float(layer.sweep.inertia[k - 1]), float(layer.sweep.weighted_inertia[k - 1])
        yield Probe(layer.layer, k, inertia, weighted, task.score(outputs[k], reference, images.labels))


def chain_before(model: nn.Module, layer: str, sample: torch.Tensor) -> list[nn.Module]:
    """Modules up to the one that holds `layer`, each fed with the very output of the one before.

    Sequential containers are opened. A traced forward pass of `sample` [1, C, H, W] finds the chain by
    object identity; a second one that passes over it, with NaN for the image, must give the same output to
    the bit, which rules out connections around the chain. Empty where there is no such chain.
    """
    calls: list[tuple[str, nn.Module, object, object]] = []

    def record(name: str):
        def hook(module: nn.Module, arguments: tuple, output: object) -> None:
            calls.append((name, module, arguments[0] if arguments else None, output))

        return hook

    hooks = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if name and not _is_container_of(model, name, layer)
    ]
    try:
        expected = forward(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    chain = _longest_chain(calls, layer)
    return chain if chain and _can_resume(model, chain, sample, expected) else []


def _can_resume(model: nn.Module, chain: list[nn.Module], sample: torch.Tensor, expected: np.ndarray) -> bool:
    with resumed(model, chain, sample):
        try:
            # NaN for the image: what reaches the output around the chain shows, also where it adds zero here.
            return np.array_equal(forward(model, torch.full_like(sample, torch.nan)), expected)
        except Exception:
            # A connection around the chain met a tensor that it did not expect; modules complain in many ways.
            return False


def _is_container_of(model: nn.Module, name: str, layer: str) -> bool:
    """Whether a plain sequence of modules holds the layer, so that its parts can stand in the chain."""
    return layer.startswith(f"{name}.") and isinstance(model.get_submodule(name), nn.Sequential)


def _longest_chain(calls: list[tuple[str, nn.Module, object, object]], layer: str) -> list[nn.Module]:
    """The chain that ends with the module that holds `layer`, followed backwards through the calls."""
    names = [name for name, *_ in calls]
    holders = [i for i, name in enumerate(names) if layer == name or layer.startswith(f"{name}.")]
    if not holders:
        return []
    # The outermost holder: its parts may be joined by code that is not a module.
    position = min(holders, key=lambda i: len(names[i]))
    chain = [position]
    while True:
        wanted = calls[chain[0]][2]
        # The outermost module with this output: it returns after its parts do.
        makers = [i for i in range(chain[0]) if calls[i][3] is wanted and not _nested(names[i], names[chain[0]])]
        if not makers or not isinstance(wanted, torch.Tensor):
            break
        chain.insert(0, makers[-1])
    modules = [calls[i][1] for i in chain]
    called_once = all(sum(module is call[1] for call in calls) == 1 for module in modules)
    return modules if len(modules) > 1 and called_once else []


def _nested(first: str, second: str) -> bool:
    """Whether one of two modules is a part of the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


@contextmanager
def resumed(model: nn.Module, chain: list[nn.Module], batch: torch.Tensor) -> Iterator[None]:
    """The model with the chain's last module fed from memory, and those before it passed over.

    Only forward passes of `batch` are valid inside.
    """
    *skipped, last = chain
    kept: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[0].clone()))
    try:
        forward(model, batch)
    finally:
        hook.remove()
    # A copy each time: the modules behind may write into their input.
    hook = last.register_forward_pre_hook(lambda module, arguments: (kept[0].clone(),))
    try:
        for module in skipped:
            module.forward = lambda x: x
        yield
    finally:
        hook.remove()
        for module in skipped:
            del module.forward
