"""Weights and layers that a trained network should not have, and small ones that it may have."""

import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wshare.artifacts.clusters import read_clusters
from wshare.cli import main
from wshare.models import zoo as embedded
from wshare.models.registry import load
from wshare.models.state import state_of
from wshare.packed.format import load_packed
from wshare.quantize.cost import index_bits

from . import networks
from .pipeline import MODEL, R, layers, run_all, searched

FETCH = {"source": "file", "architecture": "python:tests.faults.networks:few", "path": "weights.safetensors"}
FETCH |= {"preprocessing": {"channels": 1, "crop": 8}}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fetch() -> int:
    files = ["--weights", MODEL["weights"], "--spec", MODEL["spec"]]
    return main(["fetch_model", "--settings", json.dumps(FETCH), "--cache", "cache", *files])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["two.weight", "fc.bias"])
def test_weights_that_are_not_finite_stop_before_clustering(fault, capsys, name, value):
    row = fault(4, "NaN or infinity in a tensor", where="fetch_model", data="stops, with the tensor's name and count")
    state = state_of(networks.few())
    state[name].view(-1)[[0, 3, 5]] = value
    save_file(state, "weights.safetensors")
    assert fetch() == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    digits = hashlib.sha256(Path("weights.safetensors").read_bytes()).hexdigest()
    assert line.partition("error: ")[2] == (
        f"file weights.safetensors (sha256 {digits}): {name} holds 3 NaN or infinite values of {state[name].numel()}; "
        "get the weights again"
    )
    assert not os.path.exists("results")
    row.round(True)


def test_a_network_with_a_nan_answers_nan():
    """Why no option keeps such a layer: there is no float32 accuracy to keep a share of."""
    module = networks.few()
    module.two.weight.data.view(-1)[3] = torch.nan
    assert module(torch.ones(1, 1, 8, 8)).isnan().all()


@pytest.mark.parametrize("layer", [0, 2])
def test_a_network_with_an_infinity_before_a_clamp_answers_nan_too(layer):
    """Padding in front of the first layer, padding and the zeros of ReLU6 in front of the other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU6()]
        module = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 10)).eval()
    assert module(torch.ones(1, 1, 8, 8)).isfinite().all()
    module[layer].weight.data.view(-1)[3] = torch.inf
    assert module(torch.ones(1, 1, 8, 8)).isnan().all()


def test_statistics_of_batch_norm_that_are_not_finite_stop_too(fault, capsys):
    row = fault(4, "NaN or infinity in a tensor", data="stops, with the tensor's name and count")
    state = state_of(networks.odd())
    state["bn.running_var"][2] = torch.nan
    save_file(state, "weights.safetensors")
    settings = FETCH | {"architecture": "python:tests.faults.networks:odd"}
    files = ["--weights", MODEL["weights"], "--spec", MODEL["spec"]]
    assert main(["fetch_model", "--settings", json.dumps(settings), "--cache", "cache", *files]) == 1
    assert "bn.running_var holds 1 NaN or infinite values of 8" in capsys.readouterr().err
    row.round(True)


def test_denormal_weights_are_weights(fault):
    row = fault(4, "denormal numbers in a tensor", data="shared like others")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = embedded.tiny().eval()
    module.pointwise.weight.data.view(-1)[:] = torch.tensor([1e-40, -1e-40, 3e-42, 0.5]).repeat(128)
    run_all(module)
    found = read_clusters(f"{R}/layers/pointwise/clusters.h5")
    assert len(found.sweep.inertia) == 4
    assert found.sweep.codebook(4).tolist() == np.unique(module.pointwise.weight.detach().numpy()).tolist()
    for search in ("slope", "rd"):
        assert all(torch.isfinite(value).all() for value in load_packed(searched(search)["packed"]).values())
        row.round(True)


@pytest.mark.parametrize("half", [False, True])
def test_no_layer_gets_more_values_than_it_has(fault, half):
    """k is clamped to the distinct weights and recorded; with as many, nothing is lost."""
    row = fault(5, "k above the distinct weights of a layer", data="clamped, recorded; lossless from there on")
    module = networks.few()
    if half:
        module = module.half().float()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_all(module, "few")
    assert len({str(warning.message) for warning in caught}) == len(caught)
    distinct = {"one": 1, "two": 2, "five": 5}
    for name, count in distinct.items():
        found = read_clusters(f"{R}/layers/{name}/clusters.h5")
        weight = module.get_submodule(name).weight.detach().numpy()
        assert len(found.sweep.inertia) == count
        assert max(found.candidates) == count
        assert found.sweep.inertia[-1] == 0
        assert found.sweep.codebook(256).tolist() == np.unique(weight).tolist()
        row.round(True)
    recipe = json.loads(Path(searched("slope")["recipe"]).read_text())
    packed = load_packed(searched("slope")["packed"])
    bits = 0
    for name, count in distinct.items():
        k, weight = recipe["layers"][name]["k"], module.get_submodule(name).weight.detach()
        assert k is None or k <= count
        if k == count:
            assert torch.equal(packed[f"{name}.weight"], weight)
        bits += 32 * weight.numel() if k is None else index_bits(k) * weight.numel() + 32 * k
    assert json.loads(Path(searched("slope")["sizes"]).read_text())["analytic_bits"] == bits
    recipe = json.loads(Path(searched("rd")["recipe"]).read_text())
    # Error feedback moves weights before they are shared, so that k may pass their number; the file holds k values.
    packed = load_packed(searched("rd")["packed"])
    for name, layer in recipe["layers"].items():
        assert len(packed[f"{name}.weight"].unique()) <= max(1, layer["k"]) * len(packed[f"{name}.weight"])


def test_odd_layers_pass_through_every_stage(fault):
    row = fault(6, "constant, empty, tiny, tied, grouped and transposed layers", data="shared, or kept to the bit")
    module = networks.odd()
    run_all(module, "odd")
    table = json.loads(Path(f"{R}/model/layers.json").read_text())
    listed = [name for entry in table["parameters"] for name in (entry["name"], *entry["aliases"])]
    assert sorted(listed) == sorted(name for name, _ in module.named_parameters(remove_duplicate=False))
    status = {entry["name"]: entry for entry in table["parameters"]}
    assert status["first.weight"]["aliases"] == ["second.weight"]
    assert status["empty.weight"]["status"] == "kept"
    assert layers() == ["single", "constant", "zero", "depthwise", "grouped", "first", "transposed"]
    spec = json.loads(Path(MODEL["spec"]).read_text())
    for search in ("slope", "rd"):
        packed = load_packed(searched(search)["packed"])
        loaded = load(spec, packed)
        assert loaded.first.weight is loaded.second.weight
        assert torch.equal(packed["first.weight"], packed["second.weight"])
        for entry in table["parameters"]:
            name = entry["name"]
            original = module.get_parameter(name).detach()
            assert packed[name].shape == original.shape
            assert torch.isfinite(packed[name]).all()
            if entry["status"] == "kept" and not name.startswith("bn.") and not (search == "rd" and "bias" in name):
                assert torch.equal(packed[name], original), name
        assert "second.weight" not in load_file(searched(search)["dense"])
        row.round(True)
