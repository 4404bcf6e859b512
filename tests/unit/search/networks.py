"""Networks as training might leave them, for tests of what is made of them."""

import torch
from torch import nn

from wshare.models.kinds.table import kinds_of, shareable
from wshare.models.state import fast


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights and batch norms as training might leave them, negative scales among them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if kinds_of(module):
            columns = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / columns) ** 0.5
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=generator) / 10
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, centre, width in (
                (module.running_mean, 0.0, 0.3),
                (module.running_var, 1.0, 0.0),
                (module.weight.data, 0.7, 0.5),
                (module.bias.data, 0.0, 0.3),
            ):
                tensor.copy_(centre + width * torch.randn(tensor.shape, generator=generator))
    return fast(model.eval())


def layers_of(model: nn.Module) -> list[str]:
    return shareable(model)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
