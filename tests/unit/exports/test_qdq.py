"""ONNX files with integer weights: what ONNX Runtime answers, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

import wshare
from tests.unit.models.onnx_files import classifier, save
from wshare.errors import UserError
from wshare.exports.qdq import grid_of
from wshare.exports.table import FORMATS
from wshare.models import registry
from wshare.models.kinds.table import layer_of, shareable
from wshare.models.state import state_of, tied
from wshare.packed.format import load_packed, write_packed
from wshare.quantize.codebooks import Shared

from ..test_nn import network
from .test_exports import IMAGES, check, noise, run

KINDS = {8: TensorProto.INT8, 4: TensorProto.INT4}


def pack(model: nn.Module, path: Path, largest: tuple[int, ...], scaled: bool = True) -> Path:
    """Shares all layers as integers up to these in turn, with a scale for each output."""
    rng = np.random.default_rng(0)
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    aliases = {alias: first for first, *others in tied(model.state_dict(keep_vars=True)) for alias in others}
    shared = {}
    for name in shareable(model):
        layer, most = layer_of(model, name), largest[len(shared) % len(largest)]
        shape, step = tuple(layer.weight.shape), np.float32(2**-7 * 1.25)
        places = np.arange(-most, most + 1)
        indices = rng.integers(len(places), size=shape).astype(np.uint16)
        # All are taken, as those of a search are.
        indices.ravel()[: len(places)] = np.arange(len(places))[: indices.size]
        exponents = rng.integers(-30, 9, size=layer.layout.outputs(shape)).astype(np.int16) if scaled else None
        codebook = (places * step).astype(np.float32)
        shared[layer.tensor] = Shared(codebook, indices, exponents, layer.layout, float(step))
    shared = {name: tensor for name, tensor in shared.items() if name in state}
    write_packed(path, state, shared, {}, {}, aliases, "entropy")
    return path


def weights_of(path: Path, images: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """What the graph makes of its integers."""
    file = onnx.load(path)
    file.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


class Transposed(nn.Sequential):
    """Weights whose outputs lie along another axis than the first, in groups too."""

    def __init__(self):
        layers = [nn.ConvTranspose2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2, groups=2), nn.Flatten()]
        super().__init__(*layers)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [(127,), (7,), (127, 7), (0, 1, 100)])
@pytest.mark.parametrize("make", [network, Transposed])
@pytest.mark.parametrize("scaled", [True, False])
def test_onnx_runtime_answers_as_the_network_with_these_weights(tmp_path, largest, make, scaled):
    torch.manual_seed(0)
    model, images = make().eval(), noise(IMAGES, 3, 6, 7)
    packed = pack(model, tmp_path / "packed", largest, scaled)
    path = tmp_path / "net.onnx"
    FORMATS["onnx-qdq"].write(packed, path, model, images[:2])
    check(model, packed, path, images)
    file = onnx.load(path)
    kinds = {tensor.data_type for tensor in file.graph.initializer} & set(KINDS.values())
    used = largest[: len(shareable(model))]
    assert kinds == {KINDS[8 if most > 7 else 4] for most in used}
    assert file.opset_import[0].version == (21 if min(used) <= 7 else 18)
    state = load_packed(packed)
    names = [f"{name}.weight" for name in shareable(model) if f"{name}.weight" in state]
    names = [name for name in names if any(name in node.output for node in file.graph.node)]
    for name, found in weights_of(path, images.numpy(), names).items():
        # The scale is rounded once more than in the packed file.
        np.testing.assert_allclose(found, state[name].numpy(), rtol=2**-22)


def test_integers_of_four_bits_take_half_a_byte(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(401, 201, bias=False)).eval()
    for most, bits in ((127, 8), (7, 4)):
        packed = pack(model, tmp_path / "packed", (most,))
        FORMATS["onnx-qdq"].write(packed, tmp_path / "net.onnx", model, noise(1, 1, 1, 401))
        size = (tmp_path / "net.onnx").stat().st_size
        assert 0 < size - (401 * 201 * bits / 8 + 4 * 201) < 1500


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.slow
def test_what_a_search_chose_runs_with_its_widths_and_answers(tmp_path, form):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12)]
    layers += [nn.ReLU(), nn.Conv2d(12, 24, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for name in shareable(model):
            model.get_submodule(name).weight *= 4
    images = torch.randn(300, 1, 12, 12) + torch.randn(300, 1, 1, 1)
    # A size between those of 4 and of 8 bits everywhere.
    options = {"format": form, "max_kl": 0.01} if form == "int8" else {"format": form, "compression_rate": 3.2}
    result = wshare.compress(model, images, quality=0.5, confidence=None, options=options)
    assert result.recipe["packing"]["format"] == "entropy"
    result.save(tmp_path / "packed")
    FORMATS["onnx-qdq"].write(tmp_path / "packed", tmp_path / "net.onnx", model, images[:1])
    with torch.inference_mode():
        expected = result.model(images).numpy()
    found = run(tmp_path / "net.onnx", images.numpy())
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    graph = onnx.load(tmp_path / "net.onnx").graph
    kinds = [tensor.data_type for tensor in graph.initializer if tensor.data_type in KINDS.values()]
    assert len(kinds) == 4
    assert set(kinds) == ({KINDS[8]} if form == "int8" else set(KINDS.values()))
    # Nothing is left of the batch norm but a bias.
    assert "BatchNormalization" not in [node.op_type for node in graph.node]


def test_a_packed_file_of_free_codebooks_is_refused_in_one_line(tmp_path):
    from ..test_nn import pack as pack_freely

    packed = pack_freely(network(), tmp_path / "packed")
    with pytest.raises(UserError, match=r"export onnx-qdq: .*the 5 shared values of '0.weight' are no integers of 8"):
        FORMATS["onnx-qdq"].write(packed, tmp_path / "net.onnx", network(), noise(1, 3, 6, 7))
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize(
    ("codebook", "expected"),
    [
        ([-1.5, 0.0, 0.25, 2.0], (0.25, [-6, 0, 1, 8])),
        ([0.0], (1.0, [0])),
        ([-0.0, 3.0], (3.0, [0, 1])),
        ([-127 * 1.0078125, 127 * 1.0078125], (127 * 1.0078125, [-1, 1])),
        ([1e-42, 3e-42], None),
        ([-128.0, 1.0], None),
        ([-0.1, 0.3], None),
        ([1e-30, 1e30], None),
    ],
)
def test_a_grid_is_found_exactly(codebook, expected):
    codebook = np.array(codebook, np.float32)
    found = grid_of(codebook)
    if expected is None:
        assert found is None
    else:
        assert (found[0], found[1].tolist()) == expected
        assert ((found[1] * np.float64(found[0])).astype(np.float32) == codebook).all()


def test_a_grid_of_any_step_of_a_search_is_found():
    for bits in range(0x3F80, 0x4000):
        step = np.array([bits << 16], np.uint32).view(np.float32)[0]
        for places in (np.arange(-127, 128), np.array([-7, 0, 3]), np.array([-126, 64, 127])):
            found, integers = grid_of((places * np.float64(step)).astype(np.float32))
            assert found == step
            assert integers.tolist() == places.tolist()


def test_the_graph_of_an_onnx_file_holds_integers_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(classifier(), "net.onnx")
    fetched = registry.fetch({"source": "onnx", "path": "net.onnx"}, "cache")
    example = torch.rand(3, *fetched.spec["input"])
    packed = pack(fetched.module, tmp_path / "packed", (127,))
    FORMATS["onnx-qdq"].write(packed, tmp_path / "small.onnx", fetched.module, example[:1])
    fetched.module.load_state_dict(load_packed(packed), strict=False)
    with torch.no_grad():
        expected = fetched.module(example).numpy()
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    found = np.concatenate([session.run(None, {entry: image[None].numpy()})[0] for image in example])
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    packed = pack(fetched.module, tmp_path / "packed", (7,))
    with pytest.raises(UserError, match="which cannot expand integers of 4 bits; convert the ONNX file to opset 21"):
        FORMATS["onnx-qdq"].write(packed, tmp_path / "small.onnx", fetched.module, example[:1])
