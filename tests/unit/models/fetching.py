"""What tests of networks share: fetching one, or the message why not; evaluating it; building it again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wshare.errors import UserError
from wshare.models import registry
from wshare.models import state as state_module

SMALL = (3, 32, 32)

MOBILENET = {"source": "torchvision", "architecture": "mobilenet_v2", "weights": "IMAGENET1K_V1"}


def user_state():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return module.state_dict()


def error(settings, cache="unused", kind=UserError):
    """The message of a model that cannot be fetched, in one line."""
    with pytest.raises(kind) as caught:
        registry.fetch(settings, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def evaluate(module, shape, batch=2):
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return module(images).numpy().tobytes()


def rebuilt(fetched, path):
    """What later stages have: weights from safetensors and the spec from JSON."""
    save_file(state_module.state_of(fetched.module), path)
    return registry.load(json.loads(json.dumps(fetched.spec)), load_file(path))
