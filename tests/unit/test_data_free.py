"""Compression without any images: sizes, and no word on quality."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import wshare
from wshare.cli import main
from wshare.errors import UserError
from wshare.files.sealed import read_json
from wshare.models import zoo as networks
from wshare.models.norms import batch_norms
from wshare.models.state import state_of
from wshare.packed.format import load_packed


def network() -> nn.Module:
    torch.manual_seed(0)
    return networks.tiny().eval()


@pytest.mark.parametrize("k", [1, 4, 16])
def test_each_layer_has_so_many_values_and_all_else_is_as_it_was(k, tmp_path):
    model = network()
    before = state_of(model)
    result = wshare.compress_data_free(model, k)
    result.save(tmp_path / "net")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    state = load_packed(tmp_path / "net")
    layers = [row["name"] for row in result.parameters if row["status"] == "shared"]
    for name, tensor in before.items():
        if name in layers:
            assert len(state[name].unique()) == min(k, len(tensor.unique()))
        elif name.rpartition(".")[0] not in batch_norms(model):
            assert torch.equal(state[name], tensor)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(wshare.load(tmp_path / "net", network())(images), result.model(images))


def test_values_are_those_of_least_squared_error():
    state = wshare.compress_data_free(network(), 2).state_dict()
    weight = network().get_submodule("fc").weight.detach().numpy().ravel()
    ordered = np.sort(weight)
    least = min(
        part[:i].var() * i + part[i:].var() * (len(part) - i) for part in [ordered] for i in range(1, len(part))
    )
    assert ((state["fc.weight"].numpy().ravel() - weight) ** 2).sum() == pytest.approx(least, rel=1e-3)


def test_every_result_says_that_the_quality_is_unknown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "blind.py").write_text("from wshare.models.zoo import tiny\n\n\ndef build():\n    return tiny()\n")
    save_file(state_of(network()), "w.safetensors")
    given = ["compress", "--architecture", "python:blind:build", "--weights", "w.safetensors", "--output", "net"]
    given += ["--preprocessing", '{"channels": 1, "crop": 8}']
    assert main([*given, "--k", "16", "--metrics", "metrics.json"]) == 0
    assert "data-free: no image was looked at, so nothing is known of the quality" in capsys.readouterr().out
    assert read_json("metrics.json")["quality"] == "not measured: no image was looked at"
    assert main(given) == 1
    assert "--images and --k: give images, or a number of shared values a layer" in capsys.readouterr().err
    assert main([*given, "--k", "16", "--recipe", "recipe.json"]) == 1
    assert "--recipe recipe.json: without images there is no search" in capsys.readouterr().err
    assert main([*given, "--k", "16", "--device", "cpu"]) == 1
    assert "--device cpu: without images there is no search" in capsys.readouterr().err
    assert main([*given, "--k", "2", "--keep-zeros"]) == 0


@pytest.mark.parametrize("k", [0, 5000, 2.0, True])
def test_a_k_that_is_none_ends_in_one_line(k):
    with pytest.raises(UserError, match="must be a number of shared values a layer, from 1 to 4096"):
        wshare.compress_data_free(network(), k)
