"""Calibration statistics: mean and second moment of each layer's inputs, from search images."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from tqdm import tqdm

from wshare.data.images import Images, halved
from wshare.errors import UserError
from wshare.models.kinds.attention import called_as_modules
from wshare.models.kinds.table import Layer, layer_of
from wshare.progress import PROGRESS
from wshare.quantize.statistics import Calibration, InputStatistics

# Output positions of an image that are looked at. Neighbours resemble each other: more cost time and tell little
# (measured on EfficientNet-Lite0).
POSITIONS = 64
# Above this many inputs of one output only their energies are kept: the matrix of VGG16's first dense layer has 2.5 GB.
MOST_COLUMNS = 8192


def input_statistics(
    model: nn.Module, batches: Iterable[torch.Tensor], layers: list[str], seed: int
) -> dict[str, InputStatistics]:
    """Statistics of the layers' inputs over all inputs, and over their mirror images where they are pictures, by layer.

    UserError names a layer that no image reaches.
    """
    [found] = _of_parts(model, [batches], layers, seed, threads=1)
    return found


def calibrate(
    model: nn.Module, images: Images, layers: list[str], seed: int, threads: int = 1, further: Images | None = None
) -> Calibration:
    """Statistics of the layers' inputs on each half of the images, and on each half of `further` ones, if any.

    On several `threads` these run side by side. UserError for a single further image.
    """
    if further and len(further) < 2:
        raise UserError(
            "calibration: 1 further image; give at least two, since half of them score what the others teach"
        )
    collections = [images, *([further] if further else [])]
    parts = [part for collection in collections for part in halved(collection)]
    first, second, *others = _of_parts(model, [part.batches() for part in parts], layers, seed, threads)
    border, *others_border = [collection.middle() for collection in collections]
    return Calibration((first, second), border, tuple(others) or None, *others_border)


def further_images(further: Images | None) -> dict[str, int]:
    """Entry of the settings that calibration statistics were measured with, where some images were no search images."""
    return {"further_images": len(further)} if further else {}


def _of_parts(
    model: nn.Module, parts: Sequence[Iterable[torch.Tensor]], layers: list[str], seed: int, threads: int
) -> list[dict[str, InputStatistics]]:
    """Statistics of each part's inputs: a part is one thread's, so that its sums have one order."""
    own = threading.local()
    found = [layer_of(model, name) for name in layers]
    # A GPU takes one batch at a time.
    threads = 1 if any(layer.weight.is_cuda for layer in found) else min(threads, len(parts))
    hooks = [
        layer.module.register_forward_hook(lambda *call, name=layer.name: own.sums[name].add(*call), with_kwargs=True)
        for layer in found
    ]

    def measure(part: Iterable[torch.Tensor]) -> dict[str, InputStatistics]:
        own.sums, images = {layer.name: _Sums(layer, seed) for layer in found}, 0
        with torch.inference_mode():
            for batch in part:
                for view in _views(batch):
                    # A copy: a network may write into its input, and these images are needed again.
                    model(view.clone())
                    images += len(view)
                bar.update()
        _check_called(own.sums)
        return {name: sums.statistics(images) for name, sums in own.sums.items()}

    try:
        with (
            called_as_modules(),
            tqdm(desc="calibration", unit="batch", **PROGRESS) as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            return list(pool.map(measure, parts))
    finally:
        for hook in hooks:
            hook.remove()


def _check_called(gathered: Mapping[str, "_Sums"]) -> None:
    for name, sums in gathered.items():
        if not sums.called:
            raise UserError(
                f"layer {name!r} is never called for these images; exclude it from sharing (exclude= in Python, "
                "layers.exclude of the model in a configuration)"
            )


def _views(batch: torch.Tensor) -> list[torch.Tensor]:
    """The batch, and its mirror image where the last axis may be a picture's width: [N, C, H, W] and [N, C, D, H, W].

    A mirrored photograph, or slice of a volume, is as likely as the other. Sound backwards is not, so that sequences
    [N, C, T] are taken as they are, as vectors [N, F] are.
    """
    if batch.ndim not in (4, 5):
        return [batch]
    order = torch.channels_last if batch.ndim == 4 else torch.channels_last_3d
    return [batch, batch.flip(-1).contiguous(memory_format=order)]


class _Sums:
    """Sums over the inputs of one layer."""

    def __init__(self, layer: Layer, seed: int):
        self.layer = layer
        self._generator = torch.Generator().manual_seed(seed)
        self._places: dict[int, torch.Tensor] = {}
        self._samples = 0
        self._mean: torch.Tensor | float = 0.0
        self._second: torch.Tensor | float = 0.0

    @property
    def called(self) -> bool:
        """Whether the layer was."""
        return self._samples > 0

    def add(self, module: nn.Module, arguments: tuple, named: dict, output: object) -> None:
        """What one call of the layer took and gave: a forward hook."""
        kind = self.layer.kind
        taken, made = kind.sums(module, self.layer.leaf, arguments, named, output)
        count = kind.positions(module, made)
        if count not in self._places:
            self._places[count] = torch.randperm(count, generator=self._generator)[:POSITIONS].sort().values
        # [groups, columns, samples]
        inputs = kind.inputs(module, taken, made, self._places[count])
        self._samples += inputs.shape[2]
        if inputs.shape[1] > 1 and 1 not in inputs.stride()[1:]:
            # As it is copied here, each small matrix of a group would be copied for its product.
            inputs = inputs.contiguous()
        self._mean += inputs.sum(2)
        if inputs.shape[1] > MOST_COLUMNS:
            self._second += (inputs**2).sum(2)
        else:
            if isinstance(self._second, float):
                self._second = inputs.new_zeros(len(inputs), inputs.shape[1], inputs.shape[1])
            self._second.baddbmm_(inputs, inputs.mT)

    def statistics(self, images: int) -> InputStatistics:
        mean, second = ((total / self._samples).numpy(force=True) for total in (self._mean, self._second))
        return InputStatistics(mean, second, images, self._samples // images)
