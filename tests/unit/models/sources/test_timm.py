"""Networks of timm, without a network connection."""

import functools
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.models.fetching import SMALL, error, evaluate, rebuilt
from wshare.models import registry
from wshare.models import state as state_module


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = error({"source": "timm", "architecture": "resnetv2_50"})
    assert "timm is not installed; it is an optional extra: pip install timm" in message


@pytest.mark.slow
def test_timm_preprocessing_and_state():
    pytest.importorskip("timm")
    from wshare.models.sources import timm as timm_source

    settings = {"architecture": "resnetv2_50"}
    module = timm_source.build("resnetv2_50.a1h_in1k", {})
    assert timm_source.preprocessing_of(module, settings) == {
        "channels": 3,
        "resize": 235,
        "crop": 224,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    settings["preprocessing"] = {"crop": 288}
    assert timm_source.preprocessing_of(module, settings)["resize"] == 303
    settings["preprocessing"] = {"crop": [400, 288]}
    assert timm_source.preprocessing_of(module, settings)["resize"] == 303
    settings["preprocessing"] = {"crop": None}
    assert timm_source.preprocessing_of(module, settings)["resize"] == 235
    spec = {
        "name": "resnetv2_50",
        "builder": {"kind": "timm", "name": "resnetv2_50.a1h_in1k", "arguments": {}},
        "dropped": [],
    }
    state = state_module.state_of(module)
    again = registry.load(spec, state)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.slow
def test_timm_local_checkpoint(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.create_model("mobilenetv3_small_050", num_classes=7)
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    settings = {"source": "timm", "architecture": "mobilenetv3_small_050", "path": str(tmp_path / "checkpoint.pth")}
    fetched = registry.fetch(settings | {"classes": 7}, tmp_path)
    assert fetched.spec["builder"]["name"] == "mobilenetv3_small_050.lamb_in1k"
    again = rebuilt(fetched, tmp_path / "weights.safetensors")
    assert evaluate(again, SMALL) == evaluate(module.eval(), SMALL)
    assert "weights of another shape: classifier.weight [7, 1024]" in error(settings)


@pytest.mark.slow
def test_timm_names_the_classes_of_pretrained_weights(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    module = timm.create_model("mobilenetv3_small_050")
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    settings = {"source": "timm", "architecture": "mobilenetv3_small_050"}
    with_tag = settings | {"weights": "lamb_in1k", "path": str(tmp_path / "weights.safetensors")}
    monkeypatch.setattr(timm, "create_model", functools.partial(create_without_weights, timm.create_model))
    for given in (settings, with_tag):
        names = registry.fetch(given, tmp_path).spec["categories"]
        assert (len(names), names[0], names[281], names[999]) == (1000, "tench", "tabby", "toilet tissue")
    # A thousand classes of the user's own may be any.
    assert registry.fetch(with_tag | {"weights": None}, tmp_path).spec["categories"] is None
    assert registry.fetch(settings | {"arguments": {"num_classes": 10}}, tmp_path).spec["categories"] is None


def create_without_weights(create, *arguments, pretrained, cache_dir=None, **more):
    """timm's builder, without the network."""
    return create(*arguments, pretrained=False, **more)


@pytest.mark.slow
def test_timm_without_network(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")

    def create_model(*_, **__):
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub\nand more lines")

    monkeypatch.setattr(timm, "create_model", create_model)
    message = error({"source": "timm", "architecture": "resnetv2_50"}, tmp_path)
    assert "timm resnetv2_50: no pretrained weights (FileNotFoundError: An error happened" in message
    assert "set models.<name>.path" in message
    assert "sha256" in error({"source": "timm", "architecture": "resnetv2_50", "sha256": "0" * 64}, tmp_path)
