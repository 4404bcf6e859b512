"""Networks with weights in a local file."""

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.models.fetching import SMALL, error, evaluate
from wshare.models import registry
from wshare.models import state as state_module
from wshare.models.sources import torchvision as torchvision_source


def test_file_for_a_torchvision_network(tmp_path):
    torch.manual_seed(0)
    module = torchvision_source.build("squeezenet1_1", {"num_classes": 6})
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    settings = {
        "source": "file",
        "architecture": "squeezenet1_1",
        "path": str(tmp_path / "weights.safetensors"),
        "classes": 6,
        "preprocessing": {"resize": None, "crop": 64},
    }
    fetched = registry.fetch(settings, tmp_path)
    assert fetched.spec["builder"]["arguments"] == {"num_classes": 6}
    assert fetched.spec["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert fetched.spec["preprocessing"]["resize"] is None
    assert evaluate(fetched.module, SMALL) == evaluate(module.eval(), SMALL)
    assert "give a torchvision name, timm:<name>" in error(settings | {"architecture": "keras:x"})


@pytest.mark.slow
@pytest.mark.parametrize("heads", [True, False])
def test_file_tells_whether_there_are_auxiliary_heads(tmp_path, heads):
    arguments = {"num_classes": 3, "init_weights": False}
    module = torchvision_source.build("googlenet", arguments | {"aux_logits": heads})
    save_file(state_module.state_of(module), tmp_path / "weights.safetensors")
    settings = {
        "source": "file",
        "architecture": "googlenet",
        "path": str(tmp_path / "weights.safetensors"),
        "classes": 3,
        "preprocessing": {"resize": None, "crop": 96},
    }
    fetched = registry.fetch(settings, tmp_path)
    assert fetched.spec["builder"]["arguments"]["aux_logits"] is heads
    assert fetched.spec["dropped"] == (["aux1", "aux2"] if heads else [])
