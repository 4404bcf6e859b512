"""Weights of recurrent layers and attentions: what they are multiplied by, and that they go all the way."""

import copy
import pickle

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import wshare
from wshare import api
from wshare.calibration import statistics
from wshare.calibration.importance import fisher_diagonal
from wshare.calibration.statistics import input_statistics
from wshare.errors import UserError
from wshare.exports.table import FORMATS
from wshare.models import folding
from wshare.models.folding import folded_norms
from wshare.models.kinds.table import layer_of, layers_of, shareable
from wshare.models.layers import Choice, inspect, never_called
from wshare.nn import compressed
from wshare.packed.format import read_shared
from wshare.quantize.layer import Options
from wshare.search.rate_distortion import network as network_of_layers
from wshare.search.rate_distortion.network import Network
from wshare.tasks import classification

from .kinds import layer, lived_in

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def taken(module: nn.Module, *arguments: object, **named: object) -> dict[str, np.ndarray]:
    """What each of the module's weights is multiplied by: [groups, columns, samples], by leaf."""
    found = {}
    with torch.no_grad():
        output = module(*arguments, **named)
        for part in layers_of(module):
            inputs, made = part.kind.sums(module, part.leaf, arguments, named, output)
            places = torch.arange(part.kind.positions(module, made))
            found[part.leaf] = part.kind.inputs(module, inputs, made, places)
    return found


def test_names_are_those_of_tensors_and_of_modules_where_a_weight_is_called_weight():
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4, 2, bidirectional=True), "a": nn.MultiheadAttention(4, 2)})
    model["fc"] = nn.Linear(4, 4)
    ends = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert shareable(model) == [
        *(f"rnn.weight_{role}_{end}" for end in ends for role in ("ih", "hh")),
        "a.in_proj_weight",
        "a.out_proj",
        "fc",
    ]
    for part in layers_of(model):
        again = layer_of(model, part.name)
        assert (again.tensor, again.module, again.leaf) == (part.tensor, part.module, part.leaf)
        assert part.weight is model.get_parameter(part.tensor)
        assert model.get_parameter(part.bias).shape == (part.layout.outputs(part.weight.shape),)
    assert layer_of(model, "a.out_proj").bias == "a.out_proj.bias"
    with pytest.raises(KeyError):
        layer_of(model, "rnn.bias_ih_l0")


def steps(module: nn.Module, level: int, end: str, inputs: Tensor, state: Tensor, cell: Tensor) -> tuple:
    """One step of a level by the equations of torch's documentation, from its weights' sums: the states behind it."""
    own = {name: getattr(module, f"{name}_l{level}{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    coming = inputs @ own["weight_ih"].T + own["bias_ih"]
    hidden = state @ own["weight_hh"].T + own["bias_hh"]
    if isinstance(module, nn.LSTM):
        i, f, g, o = (coming + hidden).chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        state = o.sigmoid() * cell.tanh()
        return (state @ getattr(module, f"weight_hr_l{level}{end}").T if module.proj_size else state), cell
    if isinstance(module, nn.GRU):
        (r, z, n), (own_r, own_z, own_n) = coming.chunk(3, -1), hidden.chunk(3, -1)
        r, z = (r + own_r).sigmoid(), (z + own_z).sigmoid()
        return (1 - z) * (n + r * own_n).tanh() + z * state, cell
    return (coming + hidden).tanh(), cell


def walked(module: nn.Module, sequence: Tensor, states: Tensor, cells: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and hidden states of each weight for one sequence [steps, features], step by step; and the outputs."""
    found, place = {}, 0
    for level in range(module.num_layers):
        outputs = []
        for end in ("", "_reverse")[: 1 + module.bidirectional]:
            state, cell, before, made = states[place], cells[place], [], []
            for inputs in sequence.flip(0) if end else sequence:
                before.append(state)
                state, cell = steps(module, level, end, inputs, state, cell)
                made.append(state)
            order = slice(None, None, -1) if end else slice(None)
            found[f"weight_ih_l{level}{end}"] = sequence
            found[f"weight_hh_l{level}{end}"] = torch.stack(before[order])
            outputs.append(torch.stack(made[order]))
            place += 1
        sequence = torch.cat(outputs, -1)
    return found, sequence


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("form", ["batch first", "steps first", "one sequence", "packed", "projected"])
@pytest.mark.parametrize("given", [True, False], ids=["states given", "states of zeros"])
def test_a_recurrent_layer_is_its_weights_times_their_inputs(kind, form, given):
    if form == "projected" and kind is not nn.LSTM:
        pytest.skip("only an LSTM has a projection")
    options = {"proj_size": 3} if form == "projected" else {}
    first = form in ("batch first", "packed")
    module = layer(kind, 3, 4, 2, bidirectional=True, batch_first=first, **options).double()
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(3, 5, 3, generator=generator).double()
    states = torch.randn(4, 3, options.get("proj_size", 4), generator=generator).double() * given
    cells = torch.randn(4, 3, 4, generator=generator).double() * given
    lengths, count = ([5, 2, 4] if form == "packed" else [5] * 3), (1 if form == "one sequence" else 3)
    inputs, own = (batch if first else batch.transpose(0, 1)), (states, cells)
    if form == "one sequence":
        inputs, own = batch[0], tuple(state[:, 0] for state in own)
    if form == "packed":
        inputs = pack_padded_sequence(batch, lengths, batch_first=True, enforce_sorted=False)
    hidden = (own if kind is nn.LSTM else own[0]) if given else None
    with torch.no_grad():
        parts = [walked(module, batch[i, : lengths[i]], states[:, i], cells[:, i]) for i in range(count)]
        output = module(inputs, hidden)[0]
    if form == "packed":
        output = pad_packed_sequence(output, batch_first=True)[0]
    elif form != "one sequence" and not first:
        output = output.transpose(0, 1)
    output = output[None] if form == "one sequence" else output
    for i, (_, expected) in enumerate(parts):
        # The equations above are the module's.
        torch.testing.assert_close(output[i, : lengths[i]], expected)
    for leaf, found in taken(module, inputs, hx=hidden).items():
        expected = torch.cat([part[leaf] for part, _ in parts])
        torch.testing.assert_close(found, expected.T[None], msg=leaf)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_a_cell_takes_an_input_and_a_state(kind, shape):
    module, inputs = layer(kind, 3, 4), torch.randn(shape)
    state = torch.randn(*shape[:-1], 4)
    hidden = (state, torch.randn_like(state)) if kind is nn.LSTMCell else state
    found = taken(module, inputs, hidden)
    assert torch.equal(found["weight_ih"], inputs.reshape(-1, 3).T[None])
    assert torch.equal(found["weight_hh"], state.reshape(-1, 4).T[None])
    assert not taken(module, inputs)["weight_hh"].any()
    assert layer_of(module, "weight_hh").bias == "bias_hh"


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "length first"])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 5}, {"bias": False}, {"add_bias_kv": True}], ids=str)
@pytest.mark.parametrize("form", ["self", "cross", "masked", "one"])
def test_an_attention_is_its_weights_times_their_inputs(first, sizes, form):
    if form == "self" and "kdim" in sizes:
        pytest.skip("query, key and value are of different sizes")
    module = layer(nn.MultiheadAttention, 4, 2, batch_first=first, **sizes).double()
    with torch.no_grad():
        for bias in filter(lambda bias: bias is not None, (module.in_proj_bias, module.out_proj.bias)):
            bias.normal_()
    query = torch.randn(2, 3, 4).double()
    key, value = (torch.randn(2, 6, sizes.get(name, 4)).double() for name in ("kdim", "vdim"))
    query, key, value = (query,) * 3 if form == "self" else (query, key, value)
    named = {"attn_mask": torch.rand(3, 6) > 0.6} if form == "masked" else {}
    named = {name: mask & (torch.arange(6) > 0) for name, mask in named.items()}
    given = [query, key, value]
    if form == "one":
        given = [sequence[0] for sequence in given]
    elif not first:
        given = [sequence.transpose(0, 1) for sequence in given]
    given = given[:1] * 3 if form == "self" else given
    found = taken(module, *given, **named)
    count = 1 if form == "one" else 2
    ways = dict(zip(("q", "k", "v"), (query[:count], key[:count], value[:count]), strict=True))
    if "kdim" in sizes:
        for name, sequence in ways.items():
            assert torch.equal(found[f"{name}_proj_weight"], sequence.flatten(0, 1).T[None])
    else:
        for inputs, sequence in zip(found["in_proj_weight"], ways.values(), strict=True):
            # The shorter one goes round.
            again = sequence.repeat(1, len(inputs.T) // count // sequence.shape[1], 1)
            assert torch.equal(inputs, again.flatten(0, 1).T)
        assert layer_of(module, "in_proj_weight").layout.groups == 3
    with torch.no_grad():
        output = module(*given, **named)[0]
    output = output[None] if form == "one" else output if first else output.transpose(0, 1)
    rows = functional.linear(found["out_proj.weight"][0].T, module.out_proj.weight, module.out_proj.bias)
    torch.testing.assert_close(rows, output.flatten(0, 1).detach())


def test_heads_see_what_the_thirds_of_the_weight_make():
    """Weight times inputs, plus bias, are the queries, keys and values that give the output."""
    module = layer(nn.MultiheadAttention, 4, 1, batch_first=True).double()
    batch = torch.randn(1, 3, 4).double()
    found = taken(module, batch, batch, batch)
    part = layer_of(module, "in_proj_weight")
    matrix = torch.from_numpy(part.layout.to_matrix(part.weight.detach().numpy()))
    sums = matrix.mT @ found["in_proj_weight"] + module.in_proj_bias.detach().view(3, 4, 1)
    query, key, value = sums.mT
    mixed = (query @ key.T / 2).softmax(1) @ value
    torch.testing.assert_close(mixed.T[None], found["out_proj.weight"])


class Own(nn.LSTM):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight_ih_l0.T


@pytest.mark.parametrize(
    ("module", "reasons"),
    [
        (Own(3, 4), {"weight_ih_l0": "Own is no kind of layer that can be shared"}),
        (
            nn.LSTM(3, 4, proj_size=2),
            {
                "weight_hr_l0": "weight_hr_l0: what it takes is not seen outside of the LSTM",
                "bias_hh_l0": "bias_hh_l0 of a layer: few values, kept exact",
            },
        ),
    ],
)
def test_what_cannot_be_shared_has_its_reason(module, reasons):
    table = inspect(nn.ModuleDict({"own": module, "fc": nn.Linear(2, 2)}), [], Choice())
    found = {row["name"]: row["reason"] for row in table["parameters"] if row["status"] == "kept"}
    assert {name: found[f"own.{name}"] for name in reasons} == reasons


def test_weights_whose_values_stand_otherwise_in_an_onnx_file_are_kept():
    model = nn.ModuleDict({"rnn": nn.GRU(2, 3), "fc": nn.Linear(3, 2)})
    model.initialisers = {"fc.weight": ("w", False)}
    rows = {row["name"]: row for row in inspect(model, [], Choice())["parameters"]}
    assert rows["fc.weight"]["status"] == "shared"
    assert rows["rnn.weight_ih_l0"]["reason"].startswith("its ONNX file holds these values in another order")


class Reader(nn.Module):
    """A small CRNN: columns of a picture as a sequence."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.rnn = kind(16, 6, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        columns = functional.max_pool2d(self.norm(self.conv(images)).relu(), (2, 1))
        sequence, _ = self.rnn(columns.flatten(1, 2).transpose(1, 2))
        return self.head(sequence.mean(1))


class Attends(nn.Module):
    """Pixels of rows as a sequence, torch's own encoder, and an attention whose keys are others than its queries."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 1)
        self.pool = nn.MultiheadAttention(8, 2, kdim=16, vdim=16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        sequence = self.embed(images[:, 0])
        encoded = self.encoder(sequence, src_key_padding_mask=torch.zeros(sequence.shape[:2], dtype=torch.bool))
        whole = torch.cat([encoded, sequence], 2)
        return self.head(self.pool(encoded.mean(1, keepdim=True), key=whole, value=whole)[0][:, 0])


NETWORKS = {"reader": Reader, "reader with GRU": lambda: Reader(nn.GRU), "attends": Attends}


def pictures(count: int = 12) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Module:
    return lived_in(layer(NETWORKS[request.param]))


def test_all_weights_are_shared_and_reached(network):
    names = shareable(network)
    assert len(names) == sum(parameter.ndim > 1 for parameter in network.parameters())
    assert never_called(network, names, pictures(2)) == set()
    found = input_statistics(network, [pictures()], names, 0)
    for part in layers_of(network):
        rows = part.layout.to_matrix(part.weight.detach().numpy())
        assert found[part.name].mean.shape == rows.shape[:2]
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_nothing_is_folded_into_a_recurrent_cell(monkeypatch):
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.norm = nn.RNNCell(8, 4, nonlinearity="relu"), nn.BatchNorm1d(4)

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(self.cell(images[:, 0, 0]))

    # As if rounding were no reason not to.
    monkeypatch.setattr(folding, "TOLERANCE", np.inf)
    model = lived_in(layer(Cell))
    assert folded_norms(model, shareable(model), pictures()) == {}


def test_the_importance_does_without_cudnn_where_it_has_no_gradient():
    network, seen = lived_in(layer(Reader)), []
    network.rnn.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    found = fisher_diagonal(classification, network, [pictures(2)], shareable(network), 0)
    assert seen == [False, False]
    assert torch.backends.cudnn.enabled
    assert all(importance.any() for importance in found.values())


def test_mean_sums_of_each_weight_stay_where_they_were(network, monkeypatch):
    """With all positions looked at, biases make good what the means of the sums lose."""
    monkeypatch.setattr(statistics, "POSITIONS", 10**6)
    # Biases as they are corrected, before they are rounded.
    monkeypatch.setattr(network_of_layers, "_rounded", lambda bias, unit: bias.astype(np.float32))
    names = shareable(network)
    found = input_statistics(network, [pictures()], names, 0)
    prepared = Network.of(network, dict.fromkeys(names, 1.0), found, {})
    settings = {name: {"slope": 1e-3, "sensitivity_scale": 1.0} for name in names}
    parts = prepared.compressed(prepared.quantised(settings, Options(), 1))
    corrected = 0
    for part in layers_of(network):
        if part.bias is None:
            assert part.leaf in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            continue
        change = part.layout.to_matrix(parts.shared[part.tensor].weight() - part.weight.detach().numpy())
        moved = (change.transpose(0, 2, 1) @ found[part.name].mean[:, :, None]).ravel()
        made_good = parts.changed[part.bias] - network.get_parameter(part.bias).detach().numpy()
        np.testing.assert_allclose(moved + made_good, 0, atol=1e-5)
        corrected += np.abs(moved).max() > 1e-3
    assert corrected > 2


def test_files_and_modules_hold_them(network, tmp_path, caplog):
    result = wshare.compress_data_free(network, 16)
    shared, _ = read_shared(result.packed)
    assert set(shared) == {part.tensor for part in layers_of(network)}
    result.save(tmp_path / "packed")
    again = layer(type(network), *([type(network.rnn)] if isinstance(network, Reader) else []))
    with torch.inference_mode():
        expected = result.model(pictures())
        assert torch.equal(wshare.load(tmp_path / "packed", again)(pictures()), expected)
        with caplog.at_level("INFO"):
            small = compressed(network, tmp_path / "packed")
        assert torch.equal(small(pictures()), expected)
        assert torch.equal(pickle.loads(pickle.dumps(small))(pictures()), expected)
    left = {name for name, _ in small.named_parameters()} & set(shared)
    assert left == {name for name in shared if name.startswith("rnn.")}
    assert ("recurrent layers read all weights at once" in caplog.text) == bool(left)
    assert not torch.equal(expected, network(pictures()))
    FORMATS["onnx"].write(tmp_path / "packed", tmp_path / "net.onnx", result.model, pictures(2))
    dense = {tensor.name for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert not dense & set(shared)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": pictures().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected.clone(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_core_ml_holds_a_network_or_says_that_it_cannot(network, tmp_path):
    coreml = pytest.importorskip("wshare.exports.coreml")
    wshare.compress_data_free(network, 16).save(tmp_path / "packed")
    if isinstance(network, Attends):
        with pytest.raises(UserError, match="coremltools cannot convert this network"):
            coreml.convert(tmp_path / "packed", network, pictures(1))
        return
    (function,) = coreml.convert(tmp_path / "packed", network, pictures(1)).get_spec().mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    # Convolution and dense layer: recurrent weights lie otherwise there.
    assert [operation.type for operation in block.operations].count("constexpr_lut_to_dense") == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rate_distortion", "uniform"])
def test_a_whole_network_is_compressed(network, method, tmp_path):
    images = pictures(160)
    result = wshare.compress(network, images, quality=0.8, confidence=None, method=method)
    assert list(result.recipe["layers"]) == shareable(network)
    assert result.metrics["bytes"]["packed"] < result.metrics["bytes"]["float32"]
    result.save(tmp_path / "packed")
    again = wshare.load(tmp_path / "packed", copy.deepcopy(network))
    assert torch.equal(again(images), result.model(images))
    search, _ = api._splits(network, images, None, 0.5, 0, None, None)
    assert api.apply_recipe(network, result.recipe, "the recipe", search)[0] == result.packed
