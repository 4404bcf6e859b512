"""Calibration statistics: mean and second moment of each layer's inputs, from search images."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from wshare.data.images import Images
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
    gathered = {name: _Sums(layer_of(model, name), seed) for name in layers}
    hooks = [sums.layer.module.register_forward_hook(sums.add, with_kwargs=True) for sums in gathered.values()]
    images = 0
    try:
        with (
            called_as_modules(),
            torch.inference_mode(),
            tqdm(batches, desc="calibration", unit="batch", **PROGRESS) as bar,
        ):
            for batch in bar:
                for view in _views(batch):
                    # A copy: a network may write into its input, and these images are needed again.
                    model(view.clone())
                    images += len(view)
    finally:
        for hook in hooks:
            hook.remove()
    for name, sums in gathered.items():
        if not sums.called:
            raise UserError(
                f"layer {name!r} is never called for these images; exclude it from sharing (exclude= in Python, "
                "layers.exclude of the model in a configuration)"
            )
    return {name: sums.statistics(images) for name, sums in gathered.items()}


def _views(batch: torch.Tensor) -> list[torch.Tensor]:
    """The batch, and its mirror image where the last axis may be a picture's width: [N, C, H, W] and [N, C, D, H, W].

    A mirrored photograph, or slice of a volume, is as likely as the other. Sound backwards is not, so that sequences
    [N, C, T] are taken as they are, as vectors [N, F] are.
    """
    if batch.ndim not in (4, 5):
        return [batch]
    order = torch.channels_last if batch.ndim == 4 else torch.channels_last_3d
    return [batch, batch.flip(-1).contiguous(memory_format=order)]


def calibrate(model: nn.Module, images: Images, layers: list[str], seed: int) -> Calibration:
    """Statistics of the layers' inputs on each half of the images."""
    border = images.middle()
    first, second = (
        input_statistics(model, part.batches(), layers, seed)
        for part in (images.part(0, border), images.part(border, len(images)))
    )
    return Calibration((first, second), border)


class _Sums:
    """Sums over the inputs of one layer."""

    def __init__(self, layer: Layer, seed: int):
        self.layer = layer
        self._generator = torch.Generator().manual_seed(seed)
        self._places: dict[int, torch.Tensor] = {}
        self._samples = 0
        self._mean: np.ndarray | torch.Tensor | float = 0.0
        self._second: np.ndarray | torch.Tensor | float = 0.0

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
        ones = inputs.new_ones(inputs.shape[2])
        if not inputs.is_cuda:
            # numpy multiplies many small matrices without copying each of them.
            inputs, ones = inputs.numpy(), ones.numpy()
        self._mean += inputs @ ones
        self._second += inputs @ inputs.mT if inputs.shape[1] <= MOST_COLUMNS else (inputs**2).sum(2)

    def statistics(self, images: int) -> InputStatistics:
        mean, second = (
            torch.as_tensor(total / self._samples).float().numpy(force=True) for total in (self._mean, self._second)
        )
        return InputStatistics(mean, second, images, self._samples // images)
