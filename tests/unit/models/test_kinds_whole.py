"""Layers of every kind go all the way: quantised, folded, packed, kept compressed in memory, exported."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import wshare
from wshare.calibration import statistics
from wshare.calibration.statistics import input_statistics
from wshare.exports.table import FORMATS
from wshare.models.folding import folded_norms
from wshare.models.kinds.table import shareable
from wshare.models.layers import Choice, inspect, replaced
from wshare.models.state import fast, state_of
from wshare.nn import compressed
from wshare.packed.compressed import Compressed
from wshare.packed.format import load_packed, pack, read_shared
from wshare.quantize import layer as layer_alone
from wshare.quantize.codebooks import Shared
from wshare.quantize.layer import Options
from wshare.search.rate_distortion import network as network_of_layers
from wshare.search.rate_distortion.network import Network

from .kinds import inputs, network

# Volumes take a second a test.
RANKS = [1, 2, pytest.param(3, marks=pytest.mark.slow)]


def shared(model: nn.Module, batch: torch.Tensor, slope: float, fold: bool = True, **options: object) -> Compressed:
    """The network with all layers at one slope, taught by the batch."""
    layers = shareable(model)
    folded = folded_norms(model, layers, batch[:2]) if fold else {}
    found = input_statistics(model, [batch], layers, 0)
    prepared = Network.of(model, dict.fromkeys(layers, 1.0), found, folded)
    settings = {name: {"slope": slope, "sensitivity_scale": 1.0} for name in layers}
    return prepared.compressed(prepared.quantised(settings, Options(**options), 1))


def packed(model: nn.Module, parts: Compressed) -> bytes:
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()} | parts.changed
    return pack(state, parts.shared, {}, parts.folded, {}, "entropy")[0]


@pytest.fixture(params=RANKS, ids="{}D".format)
def rank(request) -> int:
    return request.param


def test_each_kind_is_listed(rank):
    found = inspect(network(rank), [], Choice())["layers"]
    assert [layer["type"] for layer in found] == [
        f"Conv{rank}d",
        f"ConvTranspose{rank}d",
        f"Conv{rank}d",
        "Linear",
    ]
    assert [layer["groups"] for layer in found] == [2, 2, 1, 1]


def test_a_batch_norm_behind_any_kind_is_folded(rank):
    model, batch = network(rank), inputs(rank, 4, 8, (6, 4, 3))
    parts = shared(model, batch, 1e-9)
    assert sorted(parts.folded) == ["1", "4"]
    expected = model(batch)
    with replaced(model, parts.tensors()):
        found = model(batch)
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()


def test_the_mean_outputs_of_every_kind_stay_where_they_were(rank, monkeypatch):
    """With all positions looked at, the bias makes good what the means of the outputs lose."""
    monkeypatch.setattr(statistics, "POSITIONS", 10**6)
    # Biases as they are corrected, before they are rounded.
    monkeypatch.setattr(network_of_layers, "_rounded", lambda bias, unit: bias.astype(np.float32))
    model, batch = network(rank, bias=True), inputs(rank, 4, 4, (6, 4, 3))
    parts = shared(model, batch, 1e-3, fold=False).tensors()
    views = torch.cat([batch, batch.flip(-1)]) if rank > 1 else batch
    for place in (0, 3, 6, 9):
        own = {name: array for name, array in parts.items() if name.startswith(f"{place}.")}
        weight_alone = {name: array for name, array in own.items() if name.endswith("weight")}
        before, found, uncorrected = (means(model[: place + 1], views, tensors) for tensors in ({}, own, weight_alone))
        torch.testing.assert_close(found, before, atol=1e-5, rtol=0)
        assert (uncorrected - before).abs().max() > 1e-3


def means(part: nn.Module, batch: torch.Tensor, tensors: dict[str, np.ndarray]) -> torch.Tensor:
    """Mean of each output with some tensors replaced."""
    with torch.no_grad(), replaced(part, tensors):
        return part(batch).movedim(1, 0).flatten(1).mean(1)


@pytest.mark.slow
def test_errors_are_fed_back_along_the_inputs_of_every_kind(rank, monkeypatch):
    """Where neighbours resemble each other, feedback leaves less of an error in the outputs of each layer."""
    # A grid would be taken for its size, whatever its error.
    monkeypatch.setattr(layer_alone, "GRID_WEIGHTS", 0)
    model = network(rank)
    batch = inputs(rank, 4, 16, (6, 4, 3)).cumsum(-1)
    errors = []
    for feedback in (True, False):
        parts = shared(model, batch, 1e-3, fold=False, error_feedback=feedback, assignment_descent=False)
        errors.append([output_error(model[:i], model[i], parts.shared[f"{i}.weight"], batch) for i in (0, 3, 6)])
    fed, alone = np.array(errors)
    assert np.log(fed / alone).mean() < np.log(0.9)


def output_error(before: nn.Module, layer: nn.Module, tensor: Shared, batch: torch.Tensor) -> float:
    """Variance of what sharing changes in a layer's outputs."""
    taken = before(batch).detach()
    with torch.no_grad():
        expected = layer(taken)
        with replaced(layer, {"weight": tensor.weight()}):
            return float((layer(taken) - expected).movedim(1, 0).flatten(1).var(1).mean())


def test_files_and_modules_hold_it(rank, tmp_path):
    model, batch = network(rank), inputs(rank, 4, 8, (6, 4, 3))
    content = packed(model, shared(model, batch, 1e-4))
    path = tmp_path / "packed"
    path.write_bytes(content)
    tensors, _ = read_shared(content)
    assert (tensors["3.weight"].layout.axis, tensors["3.weight"].layout.groups) == (1, 2)
    assert tensors["3.weight"].exponents.shape == (6,)
    small = compressed(model, content)
    model.load_state_dict(load_packed(content))
    with torch.inference_mode():
        assert torch.equal(small(batch), model(batch))
    FORMATS["onnx"].write(path, tmp_path / "net.onnx", model, batch[:2])
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": batch.numpy()})
    expected = model(batch).detach().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    FORMATS["dense"].write(path, tmp_path / "net.safetensors")


@pytest.mark.slow
def test_a_whole_network_is_compressed(rank):
    class Taken(nn.Module):
        """Images as the network of this rank takes them."""

        def __init__(self):
            super().__init__()
            self.shape = (4, *(6, 6, 6)[:rank]) if rank > 1 else (4, 36)
            self.net = network(rank)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images.reshape(len(images), *self.shape))

    images = torch.randn(120, 4, 6, 36 if rank == 3 else 6, generator=torch.Generator().manual_seed(0))
    result = wshare.compress(fast(Taken()), images, quality=0.9, confidence=None)
    assert list(result.recipe["layers"]) == ["net.0", "net.3", "net.6", "net.9"]
    assert result.metrics["folded_batch_norms"] == 2
    assert result.metrics["bytes"]["packed"] < result.metrics["bytes"]["float32"]
