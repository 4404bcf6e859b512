"""Layers of every kind, each with an input that it takes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
SIZES = (7, 6, 5)


def inputs(rank: int, channels: int, count: int = 2, sizes: tuple[int, ...] = SIZES) -> Tensor:
    """[N, channels, ...] with `rank` axes of places."""
    return torch.randn(count, channels, *sizes[:rank], generator=torch.Generator().manual_seed(rank))


def layer(make: Callable[..., nn.Module], *arguments: object, **options: object) -> nn.Module:
    """A layer in evaluation mode, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **options).eval()


def network(rank: int, bias: bool = False) -> nn.Module:
    """Convolutions and a transposed one, in groups, two batch norms and a dense layer, for `inputs(rank, 4)`."""
    norm, pool = NORMS[rank], POOLS[rank]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            CONVOLUTIONS[rank](4, 8, 3, padding=1, groups=2, bias=bias),
            norm(8),
            nn.ReLU(inplace=True),
            TRANSPOSED[rank](8, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=bias),
            norm(6),
            nn.ReLU(),
            CONVOLUTIONS[rank](6, 6, 3, dilation=2, padding=2, padding_mode="replicate"),
            pool(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
        return lived_in(model)


def lived_in(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with statistics in its batch norms that matter, scales below zero among them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.normal_(0.7, 0.5)
                    module.bias.normal_(0, 0.3)
    return model.eval()
