"""Calibration statistics: mean and second moment of each layer's inputs, from search images."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from wshare.data.images import Images
from wshare.errors import UserError
from wshare.progress import PROGRESS
from wshare.quantize.statistics import InputStatistics

# Output positions of an image that are looked at. Neighbours resemble each other: more cost time and tell little.
POSITIONS = 64


# Above this many inputs of one output only their energies are kept: the matrix of VGG16's first dense layer has 2.5 GB.
MOST_COLUMNS = 8192


def input_statistics(
    model: nn.Module, batches: Iterable[torch.Tensor], layers: list[str], seed: int
) -> dict[str, InputStatistics]:
    """InputStatistics of the inputs of Conv2d and Linear layers over all images, and over their mirror images.

    UserError names a layer that no image reaches.
    """
    gathered = {name: _Sums(model.get_submodule(name), seed) for name in layers}
    hooks = [model.get_submodule(name).register_forward_hook(sums.add) for name, sums in gathered.items()]
    images = 0
    try:
        with torch.inference_mode(), tqdm(batches, desc="inputs", unit="batch", **PROGRESS) as bar:
            for batch in bar:
                for view in (batch, batch.flip(3).contiguous(memory_format=torch.channels_last)):
                    model(view)
                    images += len(view)
    finally:
        for hook in hooks:
            hook.remove()
    for name, sums in gathered.items():
        if not sums.called:
            raise UserError(
                f"layer {name!r} is never called; exclude it from sharing (key layers.exclude of the model)"
            )
    return {name: sums.moments(images) for name, sums in gathered.items()}


def half_statistics(model: nn.Module, images: Images, layers: list[str], seed: int) -> list[dict[str, InputStatistics]]:
    """InputStatistics by layer of two folds of the images: a search scores those of one by what the other taught it."""
    middle = images.middle()
    parts = images.part(0, middle), images.part(middle, len(images))
    return [input_statistics(model, part.batches(), layers, seed) for part in parts]


class _Sums:
    """Sums over the inputs of one layer."""

    def __init__(self, module: nn.Module, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        self._places: dict[int, torch.Tensor] = {}
        self._samples = 0
        self._mean: np.ndarray | torch.Tensor | float = 0.0
        self._second: np.ndarray | torch.Tensor | float = 0.0
        self._patches = _linear_inputs if isinstance(module, nn.Linear) else _conv_inputs

    @property
    def called(self) -> bool:
        """Whether the layer was."""
        return self._samples > 0

    def add(self, module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        count = output[0].numel() // output.shape[-1 if isinstance(module, nn.Linear) else 1]
        if count not in self._places:
            self._places[count] = torch.randperm(count, generator=self._generator)[:POSITIONS].sort().values
        # [groups, columns, samples]
        inputs = self._patches(module, arguments[0], output, self._places[count])
        self._samples += inputs.shape[2]
        ones = inputs.new_ones(inputs.shape[2])
        if not inputs.is_cuda:
            # numpy multiplies many small matrices without copying each of them.
            inputs, ones = inputs.numpy(), ones.numpy()
        self._mean += inputs @ ones
        self._second += inputs @ inputs.mT if inputs.shape[1] <= MOST_COLUMNS else (inputs**2).sum(2)

    def moments(self, images: int) -> InputStatistics:
        mean, second = (
            torch.as_tensor(total / self._samples).float().numpy(force=True) for total in (self._mean, self._second)
        )
        return InputStatistics(mean, second, images, self._samples // images)


def _linear_inputs(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, places].reshape(1, -1, inputs.shape[-1]).mT.contiguous()


def _conv_inputs(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    (high, wide), (step_y, step_x), (gap_y, gap_x) = module.kernel_size, module.stride, module.dilation
    top, bottom = _padding(inputs.shape[2], output.shape[2], high, step_y, gap_y, module.padding, 0)
    left, right = _padding(inputs.shape[3], output.shape[3], wide, step_x, gap_x, module.padding, 1)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(inputs, (left, right, top, bottom), mode=mode) if top + bottom + left + right else inputs
    batch, channels, _, width = padded.shape
    corner = places // output.shape[3] * step_y * width + places % output.shape[3] * step_x
    taps = [corner + y * gap_y * width + x * gap_x for y in range(high) for x in range(wide)]
    # Pixels are rows in memory in the channels_last order, so that a sample is copied as a whole.
    pixels = padded.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    samples = pixels[:, torch.stack(taps, dim=1).ravel()].reshape(batch * len(places), len(taps), module.groups, -1)
    # To [groups, channels of a group x taps, samples].
    return samples.permute(2, 3, 1, 0).reshape(module.groups, -1, batch * len(places))


def _padding(
    size: int, made: int, kernel: int, stride: int, gap: int, declared: tuple | str, axis: int
) -> tuple[int, int]:
    """Padding before and behind; computed from the sizes where a layer pads "same" or inside its own forward."""
    needed = max(0, (made - 1) * stride + gap * (kernel - 1) + 1 - size)
    before = declared[axis] if not isinstance(declared, str) and declared[axis] else needed // 2
    return before, max(0, needed - before)
