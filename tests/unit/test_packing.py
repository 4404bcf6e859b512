import base64
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from safetensors.numpy import load_file, safe_open, save_file
from torch import nn

import wshare
from wshare import packing
from wshare.codebooks import assign
from wshare.cost import index_bits, layer_bits
from wshare.errors import FormatError
from wshare.models import state_of
from wshare.packing import BatchNorm, batch_norms, load_packed, pack_indices, unpack_indices, write_packed

SHAPES = [(), (1,), (1, 1, 1, 1), (7,), (3, 5), (4, 1, 3, 3), (2, 3, 5, 7), (0, 4)]


def random_codebook(k: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).normal(size=k)).astype(np.float32)


def sample_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "conv.weight": rng.normal(size=(6, 2, 3, 3)).astype(np.float32),
        "conv.bias": rng.normal(size=6).astype(np.float32),
        "fc.weight": rng.normal(size=(5, 6)).astype(np.float32),
        "table": rng.integers(-9, 9, size=(3, 2)),
        "counter": np.array(7),
    }


def write_sample(path: Path) -> dict[str, int]:
    """A file with a layer of 3 bits, one of 0 bits, batch norms, kept tensors and an alias."""
    codebooks = {"conv.weight": random_codebook(5), "fc.weight": random_codebook(1)}
    bn = BatchNorm(np.array([1, 2], np.float32), np.array([0.5, -1], np.float32), 1e-3, True)
    plain = BatchNorm(np.array([3], np.float16), np.array([0.25], np.float16), 1e-5, False)
    return write_packed(path, sample_state(), codebooks, {"bn": bn, "plain": plain}, {"tied.weight": "conv.weight"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "packed.safetensors"


def digest(*arrays: np.ndarray) -> str:
    """Hash of an entry, from the format's description alone."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return base64.b64encode(total.digest()).decode().rstrip("=")


def craft(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None, **sections) -> None:
    """A file with a valid hash of whatever index is given."""
    index = {"version": 1, "shared": {}, "batch_norm": {}, "kept": {}, "aliases": {}} | sections
    text = json.dumps(index, separators=(",", ":"))
    index["hash"] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    save_file(tensors, path, {"wshare": json.dumps(index)} if metadata is None else metadata)


def craft_shared(path: Path, codebook: np.ndarray, octets: np.ndarray, shape: object) -> None:
    tensors = {"w.codebook": codebook, "w.indices": octets}
    craft(path, tensors, shared={"w": [shape, digest(codebook, octets)]})


def test_indices_come_back_for_every_k_from_1_to_4096():
    rng = np.random.default_rng(0)
    for k in range(1, 4097):
        indices = rng.integers(k, size=rng.integers(1, 6, size=rng.integers(1, 5)))
        indices.flat[0] = k - 1
        bits = index_bits(k)
        octets = pack_indices(indices.astype(np.uint16), bits)
        assert 2**bits >= k > 2**bits // 2
        assert octets.dtype == np.uint8
        assert octets.shape == (math.ceil(indices.size * bits / 8),)
        assert np.array_equal(unpack_indices(octets, bits, indices.size), indices.ravel())


@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), max_size=50), st.sampled_from([8, 16, 64]))
def test_blocks_join_without_a_gap(bits, values, block):
    indices = np.array(values, dtype=np.uint16) & np.uint16(2**bits - 1)
    whole = pack_indices(indices, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", block)
        assert np.array_equal(pack_indices(indices, bits), whole)
        assert np.array_equal(unpack_indices(whole, bits, len(indices)), indices)


def test_indices_lie_lowest_bit_first():
    assert pack_indices(np.array([1, 2, 3], np.uint16), 3).tolist() == [0b11_010_001, 0]
    assert pack_indices(np.array([4095, 1], np.uint16), 12).tolist() == [0xFF, 0x1F, 0x00]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 9, 16, 17, 100, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4095, 4096])
def test_a_file_gives_back_the_nearest_shared_value_of_every_weight_in_every_shape(path, k):
    rng = np.random.default_rng(k)
    codebook = random_codebook(k, seed=k)
    state = {f"layer{i}.weight": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(SHAPES)}
    sizes = write_packed(path, state, dict.fromkeys(state, codebook), {}, {})
    loaded = load_packed(path)
    assert loaded.keys() == state.keys()
    for name, weights in state.items():
        assert loaded[name].shape == weights.shape
        assert loaded[name].numpy().tobytes() == codebook[assign(weights, codebook)].tobytes()
    assert sizes["indices"] == sum(math.ceil(index_bits(k) * weights.size / 8) for weights in state.values())
    assert sizes["codebooks"] == 4 * k * len(state)
    assert sizes["kept"] == 0


@given(
    array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4), st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"])
)
def test_kept_tensors_of_any_shape_and_type_come_back(tmp_path_factory, shape, kind):
    tensor = np.random.default_rng(0).integers(0, 100, size=shape).astype(kind)
    path = tmp_path_factory.mktemp("kept") / "packed"
    write_packed(path, {"kept": tensor}, {}, {}, {})
    loaded = load_packed(path)["kept"].numpy()
    assert (loaded.shape, loaded.dtype) == (tensor.shape, tensor.dtype)
    assert loaded.tobytes() == tensor.tobytes()


def test_tensors_may_lie_in_any_order_in_memory(path):
    weights = np.arange(24, dtype=np.float32).reshape(4, 6)
    state = {"shared": weights.T, "kept": weights.T, "strided": weights[:, ::2]}
    write_packed(path, state, {"shared": np.arange(48, dtype=np.float32)[::2]}, {}, {})
    loaded = load_packed(path)
    codebook = np.arange(0, 48, 2, dtype=np.float32)
    assert np.array_equal(loaded["shared"], codebook[assign(weights.T, codebook)])
    assert np.array_equal(loaded["kept"], weights.T)
    assert np.array_equal(loaded["strided"], weights[:, ::2])


def test_the_package_offers_load_packed(path):
    write_sample(path)
    assert wshare.load_packed(path).keys() == load_packed(path).keys()


def test_tied_tensors_are_stored_once_and_stay_tied(path):
    write_sample(path)
    assert "tied.weight.indices" not in load_file(path)
    loaded = load_packed(path)
    assert loaded["tied.weight"].data_ptr() == loaded["conv.weight"].data_ptr()


def test_kept_tensors_and_batch_norms_of_a_mixed_file(path):
    write_sample(path)
    loaded = load_packed(path)
    assert np.array_equal(loaded["conv.bias"], sample_state()["conv.bias"])
    assert loaded["counter"].shape == ()
    assert set(loaded) - set(sample_state()) == {
        "tied.weight",
        *(f"bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"plain.{leaf}" for leaf in ("running_mean", "running_var", "num_batches_tracked")),
    }


def test_bytes_add_up_and_match_the_analytic_size_of_a_real_network(path):
    """On disk is analytic plus kept plus header, but for the last byte of each layer's indices."""
    model = torchvision.models.mobilenet_v2(width_mult=0.25).eval()
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    layers = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    ks = {name: 2 + 3 * i % 250 for i, name in enumerate(layers)}
    norms = batch_norms(model)
    sizes = write_packed(path, state, {name: random_codebook(k) for name, k in ks.items()}, norms, {})
    assert sizes["packed"] == path.stat().st_size
    assert sizes["packed"] == sizes["indices"] + sizes["codebooks"] + sizes["kept"] + sizes["header"]
    analytic = sum(layer_bits(state[name].size, k) for name, k in ks.items())
    rounding = sum(-index_bits(k) * state[name].size % 8 for name, k in ks.items())
    assert 8 * (sizes["indices"] + sizes["codebooks"]) == analytic + rounding
    channels = sum(len(norm.scale) for norm in norms.values())
    assert sizes["kept"] == 4 * (2 * channels + model.classifier[1].bias.numel())
    stored = load_file(path)
    assert sizes["header"] <= 250 * len(stored)
    assert sum(array.nbytes for array in stored.values()) == sizes["packed"] - sizes["header"]
    model.load_state_dict(load_packed(path))


def test_same_bytes_in_every_process(path, tmp_path):
    """The order of sets of names differs between the processes."""
    write_sample(path)
    other = tmp_path / "other.safetensors"
    program = "import sys; from test_packing import write_sample; write_sample(sys.argv[1])"
    folders = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(folders)}
    subprocess.run([sys.executable, "-c", program, other], env=environment, check=True)
    assert path.read_bytes() == other.read_bytes()


def random_batch_norm(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name != "num_batches_tracked":
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator) * 2 + 0.01 - int(name in ("bias", "running_mean"))
            )
    return module.eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5, 0])
@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (5, 8)), (nn.BatchNorm2d, (5, 8, 3, 3)), (nn.BatchNorm3d, (2, 8, 2, 3, 2))]
)
def test_folded_batch_norm_computes_the_same(path, kind, shape, eps, affine):
    module = random_batch_norm(kind(8, eps=eps, affine=affine))
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = module(images)
    for half in (False, True):
        norms = batch_norms(nn.Sequential(module))
        norms = {name: norm.halved() if half else norm for name, norm in norms.items()}
        write_packed(path, {}, {}, norms, {})
        copy = nn.Sequential(kind(8, eps=eps, affine=affine)).eval()
        copy.load_state_dict(load_packed(path))
        tolerance = {"rtol": 2e-3, "atol": 1e-2} if half else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(copy(images), expected, **tolerance)
        if half and affine:
            assert load_file(path)["0.scale"].dtype == np.float16
            assert not torch.equal(copy(images), expected)


def test_float16_halves_the_bytes_of_batch_norms(path):
    norms = {"bn": BatchNorm(np.ones(10, np.float32), np.ones(10, np.float32), 1e-5, True)}
    full = write_packed(path, {}, {}, norms, {})["kept"]
    half = write_packed(path, {}, {}, {name: norm.halved() for name, norm in norms.items()}, {})["kept"]
    assert (full, half) == (80, 40)


def test_batch_norms_that_a_scale_and_a_shift_cannot_replace_are_kept_as_they_are():
    model = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, bias=False), nn.BatchNorm2d(3)
    )
    assert list(batch_norms(model)) == ["2"]


def test_a_failed_write_keeps_the_old_file(path):
    write_sample(path)
    before = path.read_bytes()
    with pytest.raises(KeyError):
        write_packed(path, {}, {"absent": random_codebook(2)}, {}, {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def load_or_refuse(path: Path) -> dict[str, torch.Tensor] | None:
    """What the file gives, or None if it is refused with one line that names it."""
    try:
        return load_packed(path)
    except FormatError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def test_a_changed_byte_is_found_wherever_it_lies(path):
    """Every byte, by turns with a flipped bit and with any other value; only padding may change unnoticed."""
    write_sample(path)
    whole, expected = path.read_bytes(), load_packed(path)
    rng = np.random.default_rng(0)
    padding = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256) if place % 2 else 1 << rng.integers(8))
        path.write_bytes(damaged)
        loaded = load_or_refuse(path)
        if loaded is not None:
            assert same(loaded, expected)
            padding += 1
    assert padding < 8


def test_a_truncated_or_extended_file_is_refused(path):
    write_sample(path)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 17), 1, 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert load_or_refuse(path) is None
    path.write_bytes(whole + b"\0")
    assert load_or_refuse(path) is None


def test_a_type_that_only_looks_the_same_is_refused(path):
    """Same bytes, same places: only the stored type differs."""
    write_sample(path)
    whole = path.read_bytes()
    for other in (b'"I32"', b'"U32"'):
        path.write_bytes(whole.replace(b'"F32"', other))
        assert load_or_refuse(path) is None


def test_missing_files_and_folders_are_refused(tmp_path):
    for place in (tmp_path / "absent", tmp_path):
        with pytest.raises(FormatError, match=str(place)):
            load_packed(place)


def test_a_crafted_file_that_is_right_loads(path):
    """The other crafted files differ from this one in one thing each."""
    craft_shared(path, np.array([1, 2, 4], np.float32), np.array([0b00_10_01_00], np.uint8), [3, 1])
    assert load_packed(path)["w"].tolist() == [[1], [2], [4]]


@pytest.mark.parametrize(
    ("codebook", "octets", "shape", "message"),
    [
        (np.array([1, 2, 4], "f4"), np.array([0b11], "u1"), [3], "past the codebook"),
        (np.array([1, 2, 4], "f4"), np.array([0, 0], "u1"), [3], "do not fit"),
        (np.array([1, 2, 4], "f4"), np.array([], "u1"), [3], "do not fit"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), [5], "do not fit"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), [-3, -1], "do not fit"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), [2**70], "do not fit"),
        (np.array([1, 2, 4], "f4"), np.array([0], "i1"), [3], "do not fit"),
        (np.array([1, 2, 4], "f4"), np.array([[0]], "u1"), [3], "do not fit"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), [3.0], "index"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), "3", "index"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), 3, "index"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), None, "index"),
        (np.array([1, 4, 2], "f4"), np.array([0], "u1"), [3], "ascending"),
        (np.array([1, np.nan, 2], "f4"), np.array([0], "u1"), [3], "finite"),
        (np.array([1, 2, np.inf], "f4"), np.array([0], "u1"), [3], "finite"),
        (np.array([1, 2, 4], "f8"), np.array([0], "u1"), [3], "float32"),
        (np.array([[1, 2, 4]], "f4"), np.array([0], "u1"), [3], "float32"),
        (np.array([], "f4"), np.array([], "u1"), [0], "float32"),
        (np.zeros(65537, "f4"), np.zeros(9, "u1"), [4], "float32"),
        (np.array([1], "f4"), np.array([], "u1"), [2**62, 2], "index"),
        (np.array([1], "f4"), np.array([], "u1"), [2**70], "index"),
    ],
)
def test_inconsistent_indices_and_codebooks_are_refused_even_with_valid_hashes(path, codebook, octets, shape, message):
    craft_shared(path, codebook, octets, shape)
    with pytest.raises(FormatError, match=message):
        load_packed(path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"version": 2}, "version 2; this wshare reads version 1"),
        ({"version": None}, "version None"),
        ({"kept": {}}, "'a' is not in the index"),
        ({"kept": {"a": digest(np.zeros(2, "f4")), "b": digest(np.zeros(2, "f4"))}}, "'b' is missing"),
        ({"kept": {"a": digest(np.ones(2, "f4"))}}, "hash differs"),
        ({"kept": {"a": digest(np.zeros(2, "i4"))}}, "hash differs"),
        ({"kept": {"a": digest(np.zeros((2, 1), "f4"))}}, "hash differs"),
        ({"kept": {"a": 3}}, "hash differs"),
        ({"kept": ["a"]}, "damaged index"),
        ({"shared": {"a": 3}}, "damaged index"),
        ({"shared": None}, "damaged index"),
        ({"kept": {"a": digest(np.zeros(2, "f4"))}, "aliases": {"b": "c"}}, "alias 'b' names 'c'"),
        ({"kept": {"a": digest(np.zeros(2, "f4"))}, "aliases": {"b": []}}, "damaged index"),
        ({"batch_norm": {"a": [1e-5, "x"]}}, "is missing"),
    ],
)
def test_an_index_that_does_not_fit_is_refused_even_with_a_valid_hash(path, sections, message):
    craft(path, {"a": np.zeros(2, "f4")}, **sections)
    with pytest.raises(FormatError, match=message):
        load_packed(path)


@pytest.mark.parametrize(
    ("scale", "shift", "eps"),
    [
        (np.ones(2, "f4"), np.ones(3, "f4"), 1e-5),
        (np.ones((2, 1), "f4"), np.ones((2, 1), "f4"), 1e-5),
        (np.ones(2, "i4"), np.ones(2, "i4"), 1e-5),
        (np.ones(2, "f4"), np.ones(2, "f4"), "1e-5"),
        (np.ones(2, "f4"), np.ones(2, "f4"), None),
    ],
)
def test_batch_norms_that_make_no_sense_are_refused_even_with_valid_hashes(path, scale, shift, eps):
    craft(path, {"bn.scale": scale, "bn.shift": shift}, batch_norm={"bn": [eps, digest(scale, shift)]})
    with pytest.raises(FormatError, match="batch norm|damaged index"):
        load_packed(path)


@pytest.mark.parametrize("text", [None, "", "{", "3", "[]", "null", '{"version":1}', "{}"])
def test_metadata_that_is_no_index_is_refused(path, text):
    craft(path, {"a": np.zeros(2, "f4")}, metadata={} if text is None else {"wshare": text})
    with pytest.raises(FormatError, match="index"):
        load_packed(path)


def test_types_that_numpy_does_not_know_are_refused(path):
    header = b'{"__metadata__":{"wshare":"{}"},"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(FormatError):
        load_packed(path)


def test_the_file_opens_in_any_safetensors_reader(path):
    write_sample(path)
    with safe_open(path, "numpy") as file:
        assert list(file.metadata()) == ["wshare"]
        assert json.loads(file.metadata()["wshare"])["version"] == packing.VERSION
        assert "conv.weight.codebook" in file.keys()  # noqa: SIM118
