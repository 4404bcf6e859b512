import base64
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
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
from tests.fuzz.targets import with_hash, without_hash
from wshare.errors import FormatError
from wshare.models.norms import batch_norms
from wshare.models.state import state_of
from wshare.packed.container import VERSION
from wshare.packed.contents import contents
from wshare.packed.entropy import encode
from wshare.packed.format import load_packed, pack, read_index, read_shared, write_packed
from wshare.packed.sections import read_folded
from wshare.packed.varint import varint, zigzag
from wshare.quantize import codebooks
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import Layout, Shared, nearest_indices, row_scale
from wshare.quantize.cost import index_bits, layer_bits

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


FORMS = ("fixed", "entropy")
DATA = Path(__file__).parents[2] / "data"


def write(
    path: Path,
    state: dict[str, np.ndarray],
    codebooks: dict[str, np.ndarray],
    norms: dict[str, BatchNorm] | None = None,
    aliases: dict[str, str] | None = None,
    form: str = "fixed",
) -> dict[str, int]:
    """A file of layers shared by nearest value, without exponents and folded norms."""
    shared = {name: Shared(codebook, nearest_indices(state[name], codebook)) for name, codebook in codebooks.items()}
    return write_packed(path, state, shared, norms or {}, {}, aliases or {}, form)


def sample_parts() -> tuple:
    """Layers of 3 bits with exponents, 0 bits and 4 bits, batch norms, folded norms, kept tensors and an alias."""
    rng = np.random.default_rng(2)
    state = sample_state() | {"wide.weight": rng.normal(size=(4, 60)).astype(np.float32)}
    codebooks = {"conv.weight": random_codebook(5), "fc.weight": random_codebook(1)}
    codebooks["wide.weight"] = np.arange(-6, 6, dtype=np.float32) / 4
    shared = {name: Shared(codebook, nearest_indices(state[name], codebook)) for name, codebook in codebooks.items()}
    exponents = np.array([-9, 0, 3, 8, 1, 2], np.int16)
    shared["conv.weight"] = Shared(codebooks["conv.weight"], shared["conv.weight"].indices, exponents)
    bn = BatchNorm(np.array([1, 2], np.float32), np.array([0.5, -1], np.float32), 1e-3, True)
    plain = BatchNorm(np.array([3], np.float16), np.array([0.25], np.float16), 1e-5, False)
    folded = {
        "conv.bn": FoldedNorm("conv.weight", np.array([-70_000, 5, 0, 2, -2, 9], np.int32), 0.01, 1e-3, True),
        "wide.bn": FoldedNorm("wide.weight", np.array([1, 2, 3, 2], np.int32), 0.5, 1e-5, False),
    }
    state |= {f"conv.bn.{leaf}": np.ones(6, np.float32) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return state, shared, {"bn": bn, "plain": plain}, folded, {"tied.weight": "conv.weight"}


def write_sample(path: Path, form: str = "entropy") -> dict[str, int]:
    return write_packed(path, *sample_parts(), form)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "packed.safetensors"


def digest(*arrays: np.ndarray) -> str:
    """Hash of an entry, from the format's description alone."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return base64.b64encode(total.digest()).decode().rstrip("=")


def craft_second(path: Path, payload: bytes, /, **sections) -> None:
    """A file of version 2 with valid hashes of whatever payload and index are given."""
    empty = {"shared": {}, "folded": {}, "batch_norm": {}, "kept": {}, "aliases": {}}
    index = {"version": 2, "form": "entropy"} | empty | {"payload": text_hash(payload)} | sections
    index["hash"] = text_hash(json.dumps(index, separators=(",", ":")).encode())
    save_file({"payload": np.frombuffer(payload, np.uint8)}, path, {"wshare": json.dumps(index, separators=(",", ":"))})


def text_hash(octets: bytes) -> str:
    return base64.b64encode(hashlib.sha256(octets).digest()).decode().rstrip("=")


def section(*parts: bytes) -> bytes:
    rest = b"".join(parts)
    return struct.pack("<I", zlib.crc32(rest)) + rest


def craft(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None, **sections) -> None:
    """A file with a valid hash of whatever index is given."""
    index = {"version": 1, "shared": {}, "batch_norm": {}, "kept": {}, "aliases": {}} | sections
    text = json.dumps(index, separators=(",", ":"))
    index["hash"] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    save_file(tensors, path, {"wshare": json.dumps(index, separators=(",", ":"))} if metadata is None else metadata)


def craft_shared(path: Path, codebook: np.ndarray, octets: np.ndarray, shape: object) -> None:
    tensors = {"w.codebook": codebook, "w.indices": octets}
    craft(path, tensors, shared={"w": [shape, digest(codebook, octets)]})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 9, 16, 17, 100, 129, 255, 256, 257, 300, 1025, 4096, 65536])
def test_a_file_gives_back_the_nearest_shared_value_of_every_weight_in_every_shape(path, k, form):
    rng = np.random.default_rng(k)
    codebook = random_codebook(k, seed=k)
    state = {f"layer{i}.weight": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(SHAPES)}
    sizes = write(path, state, dict.fromkeys(state, codebook), form=form)
    loaded = load_packed(path)
    assert loaded.keys() == state.keys()
    for name, weights in state.items():
        assert loaded[name].shape == weights.shape
        assert loaded[name].numpy().tobytes() == codebook[nearest_indices(weights, codebook)].tobytes()
    if form == "fixed":
        assert sizes["indices"] == sum(1 + math.ceil(index_bits(k) * weights.size / 8) for weights in state.values())
    assert sizes["codebooks"] == 4 * k * len(state)
    assert sizes["kept"] == sizes["scales"] == sizes["shifts"] == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_mixed_file_comes_back(path, form):
    state, shared, norms, folded, aliases = sample_parts()
    sizes = write_packed(path, state, shared, norms, folded, aliases, form)
    loaded = {name: tensor.numpy() for name, tensor in load_packed(path).items()}
    expected = {name: tensor.weight() for name, tensor in shared.items()}
    for name, norm in norms.items():
        expected |= {f"{name}.{leaf}": array for leaf, array in norm.state().items()}
    for name, norm in folded.items():
        leaves = norm.norm(shared[norm.tensor].exponents).state()
        expected |= {f"{name}.{leaf}": array for leaf, array in leaves.items()}
    expected |= {name: state[name] for name in ("conv.bias", "table", "counter")}
    expected |= {alias: expected[name] for alias, name in aliases.items()}
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert loaded[name].tobytes() == array.tobytes()
    assert sizes["packed"] == path.stat().st_size == sum(sizes.values()) - sizes["packed"]
    assert min(sizes.values()) > 0


def test_a_row_is_scaled_by_eighths_of_octaves():
    exponents = np.array([0, 8, -8, 4, -1, 1008, -1008], np.int16)
    assert np.allclose(row_scale(exponents), 2.0 ** (exponents / 8), rtol=1e-7, atol=0)
    assert row_scale(exponents).dtype == np.float32
    shared = Shared(
        np.array([1, 3], np.float32), np.array([[[0, 1]], [[1, 0]]], np.uint16), np.array([8, -8], np.int16)
    )
    assert shared.weight().tolist() == [[[2, 6]], [[1.5, 0.5]]]


def test_a_folded_norm_shifts_by_steps_of_the_rows_scale():
    norm = FoldedNorm("w", np.array([3, -2], np.int32), 0.5, 1e-3, True)
    assert norm.norm(None).shift.tolist() == [1.5, -1]
    assert norm.norm(np.array([8, -8])).shift.tolist() == [3, -0.5]
    assert norm.norm(None).scale.tolist() == [1, 1]


def test_weights_in_blocks_are_those_in_one_piece(monkeypatch):
    rng = np.random.default_rng(0)
    codebook = random_codebook(9)
    exponents = rng.integers(-20, 20, size=50).astype(np.int16)
    shared = Shared(codebook, rng.integers(9, size=(50, 7)).astype(np.uint16), exponents)
    whole = shared.weight()
    assert np.array_equal(whole, codebook[shared.indices] * row_scale(exponents)[:, None])
    monkeypatch.setattr(codebooks, "BLOCK", 16)
    assert np.array_equal(shared.weight(), whole)


def test_a_codebook_takes_float16_where_that_is_exact(path):
    state = {"w": np.ones(5, np.float32)}
    for codebook, octets in (([0.5, 1], 4), ([0.1, 1], 8), ([1, 65504], 4), ([1, 70000], 8), ([2**-24, 1], 4)):
        codebook = np.array(codebook, np.float32)
        assert write(path, state, {"w": codebook})["codebooks"] == octets
        assert load_packed(path)["w"].tolist() == codebook[nearest_indices(state["w"], codebook)].tolist()


def test_entropy_coded_indices_take_fewer_bytes(path):
    state = {"w": np.random.default_rng(0).laplace(size=(100, 1000)).astype(np.float32)}
    codebook = np.linspace(-8, 8, 30).astype(np.float32)
    shares = np.bincount(nearest_indices(state["w"], codebook).ravel()) / 100_000
    ideal = -(shares[shares > 0] @ np.log2(shares[shares > 0])) * 100_000 / 8
    fixed, coded = (write(path, state, {"w": codebook}, form=form) for form in FORMS)
    assert ideal <= coded["indices"] <= 1.01 * ideal + 2 * 30
    assert fixed["indices"] == 1 + 5 * 100_000 // 8
    assert coded["header"] < 120


def test_version_1_is_still_read_bit_for_bit():
    loaded, expected = load_packed(DATA / "golden_v1.safetensors"), load_file(DATA / "golden_v1_expected.safetensors")
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert (tensor.numpy().dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert tensor.numpy().tobytes() == expected[name].tobytes()


@given(
    array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4), st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"])
)
def test_kept_tensors_of_any_shape_and_type_come_back(tmp_path_factory, shape, kind):
    tensor = np.random.default_rng(0).integers(0, 100, size=shape).astype(kind)
    path = tmp_path_factory.mktemp("kept") / "packed"
    write(path, {"kept": tensor}, {})
    loaded = load_packed(path)["kept"].numpy()
    assert (loaded.shape, loaded.dtype) == (tensor.shape, tensor.dtype)
    assert loaded.tobytes() == tensor.tobytes()


def test_tensors_may_lie_in_any_order_in_memory(path):
    weights = np.arange(24, dtype=np.float32).reshape(4, 6)
    state = {"shared": weights.T, "kept": weights.T, "strided": weights[:, ::2]}
    write(path, state, {"shared": np.arange(48, dtype=np.float32)[::2]})
    loaded = load_packed(path)
    codebook = np.arange(0, 48, 2, dtype=np.float32)
    assert np.array_equal(loaded["shared"], codebook[nearest_indices(weights.T, codebook)])
    assert np.array_equal(loaded["kept"], weights.T)
    assert np.array_equal(loaded["strided"], weights[:, ::2])


def test_the_package_offers_load_packed(path):
    write_sample(path)
    assert wshare.load_packed(path).keys() == load_packed(path).keys()


def test_tied_tensors_are_stored_once_and_stay_tied(path):
    state = {"a": np.zeros((50, 50), np.float32)}
    sizes = [write(path, state, {"a": random_codebook(5)}, {}, aliases) for aliases in ({}, {"b": "a"})]
    assert sizes[0]["indices"] == sizes[1]["indices"]
    write_sample(path)
    loaded = load_packed(path)
    assert loaded["tied.weight"].data_ptr() == loaded["conv.weight"].data_ptr()


def test_bytes_add_up_and_match_the_analytic_size_of_a_real_network(path):
    """On disk is analytic plus kept plus header, but for a first and the last byte of each layer's indices."""
    model = torchvision.models.mobilenet_v2(width_mult=0.25).eval()
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    layers = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    ks = {name: 2 + 3 * i % 250 for i, name in enumerate(layers)}
    norms = batch_norms(model)
    sizes = write(path, state, {name: random_codebook(k) for name, k in ks.items()}, norms)
    assert sizes["packed"] == path.stat().st_size
    assert sizes["packed"] == sizes["indices"] + sizes["codebooks"] + sizes["kept"] + sizes["header"]
    analytic = sum(layer_bits(state[name].size, k) for name, k in ks.items())
    rounding = sum(-index_bits(k) * state[name].size % 8 for name, k in ks.items())
    assert 8 * (sizes["indices"] + sizes["codebooks"]) == analytic + rounding + 8 * len(ks)
    channels = sum(len(norm.scale) for norm in norms.values())
    # The bias of the last layer is 0 throughout: four bytes.
    assert sizes["kept"] == 4 * 2 * channels + 4
    assert sizes["header"] <= 16 * (len(ks) + len(norms)) + 200
    model.load_state_dict(load_packed(path))


@pytest.mark.slow
def test_same_bytes_in_every_process(path, tmp_path):
    """The order of sets of names differs between the processes."""
    write_sample(path)
    other = tmp_path / "other.safetensors"
    program = "import sys; from tests.unit.packed.test_format import write_sample; write_sample(sys.argv[1])"
    folders = [str(Path(__file__).parents[3]), *sys.path]
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
        norms = {name: norm.to_float16() if half else norm for name, norm in norms.items()}
        write(path, {}, {}, norms)
        copy = nn.Sequential(kind(8, eps=eps, affine=affine)).eval()
        copy.load_state_dict(load_packed(path))
        tolerance = {"rtol": 2e-3, "atol": 1e-2} if half else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(copy(images), expected, **tolerance)
        if half and affine:
            assert not torch.equal(copy(images), expected)


def test_float16_halves_the_bytes_of_batch_norms(path):
    norms = {"bn": BatchNorm(np.ones(10, np.float32), np.ones(10, np.float32), 1e-5, True)}
    full = write(path, {}, {}, norms)["kept"]
    half = write(path, {}, {}, {name: norm.to_float16() for name, norm in norms.items()})["kept"]
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
        write_packed(path, {}, {"absent": Shared(random_codebook(2), np.zeros(3, np.uint16))}, {}, {}, {}, "fixed")
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


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_changed_byte_is_found_wherever_it_lies(path, form):
    """Every byte, by turns with a flipped bit and with any other value; only padding may change unnoticed."""
    write_sample(path, form)
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
    for other in (b'"I8"', b'"F8_E4M3"'):
        path.write_bytes(whole.replace(b'"U8"', other))
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
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), [-3, -1], "'w': no shape"),
        (np.array([1, 2, 4], "f4"), np.array([0], "u1"), [2**70], "may"),
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
        (np.array([1], "f4"), np.array([], "u1"), [2**62, 2], "'w'.*may"),
        (np.array([1], "f4"), np.array([], "u1"), [2**70], "'w'.*may"),
    ],
)
def test_inconsistent_indices_and_codebooks_are_refused_even_with_valid_hashes(path, codebook, octets, shape, message):
    craft_shared(path, codebook, octets, shape)
    with pytest.raises(FormatError, match=message):
        load_packed(path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"version": 3}, "version 3; this wshare reads versions 1 to 3"),
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
    with pytest.raises(FormatError, match="batch norm|eps"):
        load_packed(path)


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ((np.zeros(2, "f4"), np.ones(2, "f4")), -1e-5, "'bn': a scale is 0"),
        ((np.full(2, np.inf, "f4"), np.ones(2, "f4")), 1e-5, "'bn': the batch norm is not finite"),
        ((np.ones(2, "f4"), np.ones(2, "i8")), 1e-5, "of floats"),
        ((np.ones(2, "f4"), np.ones(2, "f4")), 1e6, "eps 1000000.0"),
    ],
)
def test_batch_norms_of_version_1_are_checked_as_those_of_version_2(path, norm, eps, message):
    tensors = dict(zip(("bn.scale", "bn.shift"), norm, strict=True))
    craft(path, tensors, batch_norm={"bn": [eps, digest(*norm)]})
    with pytest.raises(FormatError, match=message):
        load_packed(path)


def test_version_1_has_no_name_twice_and_nothing_behind_the_last_index(path):
    codebook, indices = np.array([1, 2, 4], "f4"), np.array([0b01_00_10_01, 0b11], "u1")
    tensors = {"w.codebook": codebook, "w.indices": indices}
    craft(path, tensors, shared={"w": [[5], digest(codebook, indices)]})
    with pytest.raises(FormatError, match="an index points past"):
        load_packed(path)
    indices[1] = 0b100
    craft(path, tensors, shared={"w": [[5], digest(codebook, indices)]})
    with pytest.raises(FormatError, match="bits after the last index"):
        load_packed(path)
    indices[1] = 0
    kept = {"w": np.zeros(1, "f4")}
    craft(path, tensors | kept, shared={"w": [[5], digest(codebook, indices)]}, kept={"w": digest(kept["w"])})
    with pytest.raises(FormatError, match="'w' is there twice"):
        load_packed(path)
    craft(path, {"b": np.array([2], "u1").view(bool)}, kept={"b": digest(np.array([2], "u1").view(bool))})
    with pytest.raises(FormatError, match="neither 0 nor 1"):
        load_packed(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"kept":{}', b'"kept":{},"kept":{}', "there twice"),
        (b'"kept":{}', b'"more":{},"kept":{}', "keys"),
        (b'"shared":{},"batch_norm":{}', b'"batch_norm":{},"shared":{}', "keys"),
        (b'"version":1', b'"version":true', "version True"),
        (b'"aliases":{}', b'"aliases":{"\\ud800":"a"}', "damaged index"),
        (b'"batch_norm":{}', b'"batch_norm":{"a":[%s,""]}' % (b"0." + b"0" * 40), "more than 40 letters"),
    ],
)
def test_an_index_has_its_keys_once_and_in_their_order(path, old, new, message):
    craft(path, {})
    with safe_open(path, "numpy") as file:
        text = file.metadata()["wshare"].encode().replace(old, new)
    start = text[: text.rindex(b',"hash":')]
    text = start + b',"hash":"' + text_hash(start + b"}").encode() + b'"}'
    save_file({}, path, {"wshare": text.decode()})
    with pytest.raises(FormatError, match=message):
        load_packed(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"wshare"', b'{"__metadata__":{"format":"pt"},"wshare"'),
        (b'"dtype"', b'"more":1,"dtype"'),
        (b'{"wshare"', b'{"wshare":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"wshare"'),
    ],
)
def test_a_header_has_what_a_packed_file_needs_and_no_more(path, old, new):
    content = (DATA / "golden_v3_entropy.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(old, new)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    for source in (path, path.read_bytes()):
        with pytest.raises(FormatError, match="not a packed file"):
            load_packed(source)


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
        assert file.metadata() is None
        assert file.get_tensor("wshare")[0] == VERSION
        assert list(file.keys()) == ["wshare"]


@pytest.mark.parametrize("form", FORMS)
def test_random_changes_are_refused_or_change_nothing(path, form):
    """Bytes changed, removed, inserted and repeated."""
    write_sample(path, form)
    whole, expected = path.read_bytes(), load_packed(path)
    rng = np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(damaged)))
            stop = start + int(rng.integers(1, 9))
            piece = (rng.bytes(stop - start), b"", rng.bytes(3) + damaged[start:stop], damaged[start:stop] * 2)
            damaged[start:stop] = piece[rng.integers(4)]
        path.write_bytes(damaged)
        loaded = load_or_refuse(path)
        assert loaded is None or same(loaded, expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_random_changes_with_valid_hashes_raise_nothing_but_format_errors(path, form):
    """What an attacker can send: checksums and hashes fit the changed content of a file of version 2."""
    with safe_open(DATA / f"golden_v2_{form}.safetensors", "numpy") as file:
        index, payload = json.loads(file.metadata()["wshare"]), file.get_tensor("payload").tobytes()
    index = {name: index[name] for name in ("shared", "folded", "batch_norm", "kept", "aliases")}
    ends = np.cumsum([entry[-1] for name in ("shared", "folded") for entry in index[name].values()])
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(600):
        start, stop = [(0, *ends)[(place := int(rng.integers(len(ends))))], ends[place]]
        content = bytearray(payload[start + 4 : stop])
        for _ in range(rng.integers(1, 3)):
            content[int(rng.integers(min(len(content), int(rng.integers(1, 40)))))] = int(rng.integers(256))
        craft_second(path, payload[:start] + section(bytes(content)) + payload[stop:], **index)
        refused += load_or_refuse(path) is None
    assert 100 < refused < 600


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_random_changes_of_version_3_with_a_valid_hash_raise_nothing_but_format_errors(path, form):
    payload = without_hash(DATA / f"golden_v3_{form}.safetensors")
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(1000):
        content = bytearray(payload)
        for _ in range(rng.integers(1, 3)):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
        path.write_bytes(with_hash(bytes(content)))
        refused += load_or_refuse(path) is None
    assert 200 < refused < 1000


def test_every_damaged_section_of_version_2_is_named(path):
    golden = DATA / "golden_v2_entropy.safetensors"
    with safe_open(golden, "numpy") as file:
        index, payload = json.loads(file.metadata()["wshare"]), file.get_tensor("payload").tobytes()
    whole = golden.read_bytes()
    offset = len(whole) - len(payload)
    sizes = [(name, entry[-1]) for kind in ("shared", "folded") for name, entry in index[kind].items()]
    sizes += [(name, 4 + 2 * entry[0] * int(entry[2][1])) for name, entry in index["batch_norm"].items()]
    sizes += [(name, 4 + math.prod(shape) * int(kind[1])) for name, (shape, kind) in index["kept"].items()]
    assert sum(size for _, size in sizes) == len(payload)
    for name, size in sizes:
        for place in (0, size - 1):
            damaged = bytearray(whole)
            damaged[offset + place] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(FormatError, match=f"'{name}': damaged"):
                load_packed(path)
        offset += size


ONE = struct.pack("<f", 1)
THREE = struct.pack("<3f", 1, 2, 4)
# Three indices of 2 bits: 0, 1 and 2.
INDICES = bytes([2, 0b00_10_01_00])


def placed(axis: int, groups: int) -> bytes:
    """A layout in a shared section."""
    return struct.pack("<BI", axis, groups)


def test_a_crafted_file_of_version_2_that_is_right_loads(path):
    """The other crafted files differ from this one in one thing each."""
    scaled = section(bytes([2]), THREE, bytes([4, 0, 0]), struct.pack("<h", 8), bytes([1, 0b010]), INDICES)
    folded = section(struct.pack("<fi", 0.5, -1), bytes([2, 0b11_10_00]))
    entries = {"shared": {"w": [[3, 1], 3, len(scaled)]}, "folded": {"bn": [0, 0.001, len(folded)]}}
    craft_second(path, scaled + folded, **entries)
    loaded = load_packed(path)
    assert np.allclose(loaded["w"], [[2], [4 * 2**0.125], [8]])
    assert np.allclose(loaded["bn.bias"], [-1, 2**0.125, 2])


@pytest.mark.parametrize(
    ("parts", "shape", "k", "message"),
    [
        ([b"\0", THREE, bytes([2, 0b11])], [3], 3, "'w': an integer is not below 3"),
        ([b"\0", THREE, INDICES], [5], 3, "'w': 1 bytes do not hold 5"),
        ([b"\0", THREE, bytes([3, 0, 0])], [3], 3, "too many"),
        ([b"\0", THREE], [3], 3, "'w': no coded"),
        ([b"\0", THREE, INDICES], [-3], 3, "'w': no shape"),
        ([b"\0", THREE, INDICES], 3, 3, "'w': no shape"),
        ([b"\0", THREE, INDICES], [3.0], 3, "'w': no shape"),
        ([b"\0", THREE, INDICES], [True, 3], 3, "'w': no shape"),
        ([b"\0", THREE, INDICES], [1] * 33, 3, "'w': no shape"),
        ([b"\0", THREE, INDICES], None, 3, "'w': no shape"),
        ([b"\0", THREE, INDICES], [3], 0, "'w': a codebook"),
        ([b"\0", THREE, INDICES], [3], 65537, "'w': a codebook"),
        ([b"\0", THREE, INDICES], [3], 3.0, "'w': a codebook"),
        ([b"\0", THREE, INDICES], [3], None, "'w': a codebook"),
        ([b"\0", THREE, INDICES], [3], 65536, "'w': 262144 bytes wanted"),
        ([b"\10", THREE, INDICES], [3], 3, "'w': unknown flags"),
        ([b"\4", b"\1"], [3, 1], 3, "'w': 5 bytes wanted"),
        ([b"\4", placed(0, 1), THREE, INDICES], [3, 1], 3, "'w': outputs by axis 0"),
        ([b"\4", placed(2, 1), THREE, INDICES], [3, 1], 3, "'w': outputs by axis 2"),
        ([b"\4", placed(1, 0), THREE, INDICES], [3, 1], 3, "'w': outputs by axis 1 in 0 groups"),
        ([b"\4", placed(1, 2), THREE, INDICES], [3, 1], 3, "'w': outputs by axis 1 in 2 groups"),
        ([b"\4", placed(1, 6), THREE, INDICES], [3, 1], 3, "'w': outputs by axis 1 in 6 groups"),
        ([b"\4", placed(1, 2**32 - 1), ONE, b"\0"], [0, 5], 1, "'w': outputs by axis 1"),
        ([b"\0", struct.pack("<3f", 1, 4, 2), INDICES], [3], 3, "ascending"),
        ([b"\0", struct.pack("<3f", 1, 2, math.inf), INDICES], [3], 3, "finite"),
        ([b"\2", ONE, b"\xff\0\0", struct.pack("<h", 0), b"\0\0"], [3], 1, "'w': 255 bytes wanted"),
        ([b"\2", ONE, b"\1\0\0", b"\0"], [3], 1, "'w': 2 bytes wanted"),
        ([b"\2", ONE, b"\3\0\0", struct.pack("<h", 1009), b"\0\0"], [3], 1, "'w': exponents go"),
        ([b"\2", struct.pack("<f", 9), b"\3\0\0", struct.pack("<h", 1008), b"\0\0"], [3], 1, "'w': the weights"),
        ([b"\2", ONE, b"\3\0\0", struct.pack("<h", 0), b"\0\0"], [], 1, "'w': list index"),
        ([b"\0", ONE, b"\0"], [1 << 27], 1, "'w'.*may"),
        ([b"\0", ONE, b"\0"], [2**70], 1, "'w'.*may"),
        ([b"\2", ONE, b"\3\0\0", struct.pack("<h", 0), b"\0\0"], [1 << 30, 0], 1, "'w'.*may"),
    ],
)
def test_wrong_shared_tensors_are_refused_even_with_valid_hashes(path, parts, shape, k, message):
    octets = section(*parts)
    craft_second(path, octets, shared={"w": [shape, k, len(octets)]})
    with pytest.raises(FormatError, match=message):
        load_packed(path)


SMALL = section(b"\0", ONE, b"\0")
KEPT = section(struct.pack("<2f", 1, 2))


@pytest.mark.parametrize(
    ("payload", "sections", "message"),
    [
        (KEPT, {"kept": {"a": [[3], "f4"]}}, "'a': 16 bytes wanted, 12 left"),
        (KEPT, {"kept": {"a": [[2**80], "f4"]}}, "'a': .* bytes wanted"),
        (KEPT, {"kept": {"a": [[2], "O"]}}, "'a': type"),
        (KEPT, {"kept": {"a": [[2], []]}}, "'a': type"),
        (KEPT, {"kept": {"a": [[8], "b1"]}}, "'a': a truth value"),
        (KEPT, {"kept": {"a": [[2], "f4"]}, "shared": {"a": [[2], 1, 0]}}, "'a': 4 bytes wanted"),
        (SMALL + KEPT, {"kept": {"a": [[2], "f4"]}, "shared": {"a": [[2], 1, len(SMALL)]}}, "'a' is there twice"),
        (KEPT + b"x", {"kept": {"a": [[2], "f4"]}}, "payload"),
        (KEPT, {"kept": {"a": [[2], "f4"]}, "payload": text_hash(b"")}, "payload"),
        (KEPT, {"kept": {"a": [[2], "f4"]}, "payload": None}, "damaged index"),
        (KEPT, {"kept": {"a": [[2], "f4"]}, "form": "other"}, "form 'other'"),
        (KEPT, {"kept": {"a": [[2], "f4"]}, "form": []}, "damaged index"),
        (KEPT, {"kept": {"a": [[2], "f4"]}, "aliases": {"b": "c"}}, "alias 'b' names 'c'"),
        (KEPT, {"kept": {"a": 3}}, "damaged index"),
        (KEPT, {"kept": {"a": [[2]]}}, "damaged index"),
        (KEPT, {"batch_norm": {"a": [1, 1e-5, "f4"]}, "kept": None}, "damaged index"),
        (KEPT, {"batch_norm": {"a": [1, math.nan, "f4"]}}, "'a': eps"),
        (KEPT, {"batch_norm": {"a": [1, "1", "f4"]}}, "'a': eps"),
        (KEPT, {"batch_norm": {"a": [1, 10**400, "f4"]}}, "'a': eps"),
        (KEPT, {"batch_norm": {"a": [-1, 1e-5, "f4"]}}, "'a': no shape"),
        (KEPT, {"batch_norm": {"a": [1, 1e-5, "f8"]}}, "'a': type"),
        (section(bytes(8)), {"batch_norm": {"a": [1, -1e-5, "f4"]}}, "'a': a scale is 0"),
        (section(b"\xff" * 8), {"batch_norm": {"a": [1, 1e-5, "f4"]}}, "'a': the batch norm is not finite"),
        (SMALL, {"shared": {"w": [[2], 1, len(SMALL)]}, "folded": {"a": [1, 1e-5, 9]}}, "'a': folded into no"),
        (SMALL, {"shared": {"w": [[2], 1, len(SMALL)]}, "folded": {"a": [-1, 1e-5, 9]}}, "'a': folded into no"),
        (SMALL, {"shared": {"w": [[2], 1, len(SMALL)]}, "folded": {"a": [0, 1e-5, 9]}}, "'a': 9 bytes wanted"),
        (SMALL, {"shared": {"w": [[2], 1, -1]}}, "'w': -1 bytes"),
        (SMALL, {"shared": {"w": [[2], 1, "x"]}}, "'w': x bytes"),
        (SMALL, {"shared": {"w": [[2], 1]}}, "damaged index"),
        (SMALL, {"shared": {"w": {}}}, "damaged index"),
    ],
)
def test_wrong_parts_of_version_2_are_refused_even_with_valid_hashes(path, payload, sections, message):
    craft_second(path, payload, **sections)
    with pytest.raises(FormatError, match=message):
        load_packed(path)


def test_channels_by_another_axis_count_among_what_a_file_claims(path):
    """A weight [inputs, 1, width] in as many groups as inputs has many more outputs than its first axis."""
    octets = section(b"\4", placed(1, 4096), ONE, b"\0")
    folded = section(struct.pack("<fi", 0.5, 0), b"\0")
    entries = {"w": [[4096, 4000], 1, len(octets)]}
    craft_second(path, octets + folded, shared=entries, folded={"bn": [0, 0.001, len(folded)]})
    with pytest.raises(FormatError, match="most for '(w|bn)'.*may"):
        load_packed(path)
    craft_second(path, octets, shared=entries)
    assert load_packed(path)["w"].shape == (4096, 4000)


def craft_third(path: Path, parts: list[bytes], sections: bytes, counts: tuple[int, ...] = (1, 0, 0, 0, 0)) -> None:
    """A file of version 3 with a valid hash, without epsilons, of whatever parts of the header and sections."""
    path.write_bytes(with_hash(b"".join([b"\3\1", bytes(counts), b"\0", *parts, sections])))


# A name of its own, and the entry of a shared tensor [3] of three values in a section of so many bytes.
NAME = b"\0\0\0\1w"


def shared_entry(shape: bytes, k: int, size: int) -> bytes:
    return shape + bytes([k, size])


GRID = b"\10" + struct.pack("<f", 0.5)[2:] + b"\1"


def test_a_crafted_file_of_version_3_that_is_right_loads(path):
    """The other crafted files differ from this one in one thing each. Places are -1, 1 and 2."""
    section = GRID + bytes([2, 0b11_10_00])
    craft_third(path, [NAME, shared_entry(b"\1\3", 3, len(section))], section)
    assert load_packed(path)["w"].tolist() == [-0.5, 0.5, 1]
    (tensor,) = read_shared(path)[0].values()
    assert (tensor.codebook.tolist(), tensor.indices.tolist(), tensor.step) == ([-0.5, 0.5, 1], [0, 1, 2], 0.5)
    # 1.5 as a float16, and 3 and -1 times a half.
    kept = [b"\0\0\0\1h\0\0\0\1s", b"\x11\1\1", b"\x21\1\2\5"]
    craft_third(path, kept, struct.pack("<e", 1.5) + b"\1\1\2\1\1", (0, 0, 0, 2, 0))
    loaded = load_packed(path)
    assert (loaded["h"].tolist(), loaded["s"].tolist()) == ([1.5], [1.5, -0.5])
    assert loaded["h"].dtype == loaded["s"].dtype == torch.float32


FIT = bytes([2, 0b11_10_00])
ENTRY = b"\1\3\3\6"


@pytest.mark.parametrize(
    ("parts", "sections", "counts", "message"),
    [
        ([NAME, ENTRY], GRID + bytes([2, 0b10_10_00]), (1, 0, 0, 0, 0), "'w': a grid of 2 values, not 3"),
        ([NAME, ENTRY], GRID + bytes([2, 0b11_10_01]), (1, 0, 0, 0, 0), "'w': a grid of 3 values, not 3"),
        ([NAME, ENTRY], b"\10" + struct.pack("<f", -1)[2:] + b"\1" + FIT, (1, 0, 0, 0, 0), "'w': a grid"),
        ([NAME, ENTRY], b"\10" + struct.pack("<f", math.nan)[2:] + b"\1" + FIT, (1, 0, 0, 0, 0), "'w': a grid"),
        ([NAME, ENTRY], b"\10" + b"\x80\x7f" + b"\1" + FIT, (1, 0, 0, 0, 0), "'w': the codebook is not finite"),
        ([NAME, ENTRY], b"\11" + GRID[1:] + FIT, (1, 0, 0, 0, 0), "'w': unknown flags 9"),
        ([NAME, ENTRY], b"\20" + GRID[1:] + FIT, (1, 0, 0, 0, 0), "'w': unknown flags 16"),
        ([NAME, b"\1\3\0\6"], GRID + FIT, (1, 0, 0, 0, 0), "'w': a codebook"),
        ([NAME, b"\1\3\3\7"], GRID + FIT, (1, 0, 0, 0, 0), "'w': 7 bytes wanted, 6 left"),
        ([NAME, ENTRY], GRID + FIT + b"x", (1, 0, 0, 0, 0), "1 bytes behind the last section"),
        ([NAME, b"\41" + b"\1" * 33], b"", (1, 0, 0, 0, 0), "no shape"),
        ([NAME, b"\1" + b"\x80" * 4 + b"\1\1\4"], b"\1\0\x3c\0", (1, 0, 0, 0, 0), "'w'.*may"),
        ([b"\1\0\0\1w"], b"", (1, 0, 0, 0, 0), "written after none"),
        ([NAME, b"\1\1\1\0", ENTRY, ENTRY], b"", (2, 0, 0, 0, 0), "more of another"),
        ([NAME, b"\1\1\0\0", ENTRY, ENTRY], b"", (2, 0, 0, 0, 0), "'w' is there twice"),
        ([b"\0\0\0\1\xff", ENTRY], b"", (1, 0, 0, 0, 0), "utf-8"),
        ([NAME, b"\1\3"], b"", (1, 0, 0, 0, 0), "cut short"),
        ([NAME, b"\1\x83\0\3\6"], GRID + FIT, (1, 0, 0, 0, 0), "longer than it need be"),
        ([NAME, b"\x0c\0"], b"", (0, 0, 0, 1, 0), "damaged index"),
        ([NAME, b"\x31\1\1"], bytes(4), (0, 0, 0, 1, 0), "coded as 3"),
        ([NAME, b"\x12\1\1"], bytes(8), (0, 0, 0, 1, 0), "'f8' coded as 1"),
        ([NAME, b"\x21\1\2\6"], b"\x80\2\1\2\1\1", (0, 0, 0, 1, 0), "a unit of 2.128"),
        ([NAME, b"\x21\1\2\6"], b"\xfe\1\1\2\1\1", (0, 0, 0, 1, 0), "not finite|not hold|cut short"),
        ([NAME, b"\x21\1\2\5"], b"\1\1\40\1\1", (0, 0, 0, 1, 0), "out of bounds"),
        ([NAME, b"\0\0\0\1a"], b"", (0, 0, 0, 0, 1), "alias 'w' names 'a'"),
        ([NAME, b"\1\0\0"], b"", (0, 1, 0, 0, 0), "damaged index"),
        ([NAME, b"\1\3\3\x0a"], GRID[:3] + varint(2**32 + 2) + FIT, (1, 0, 0, 0, 0), "'w': a grid of 3 values"),
        ([NAME, b"\x21\1\1\x08"], b"\0" + varint(2**32 + 2) + b"\0\0", (0, 0, 0, 1, 0), "least integer"),
        ([NAME, b"\1\1\0\0" * 2, ENTRY], GRID + FIT, (1, 0, 0, 0, 1), "'w' is there twice"),
        # An exponent that would be 0 in 16 bits.
        ([NAME, b"\1\1\1\x0a"], b"\3\0\x3c\5\x80\x80\x08\0\0\0", (1, 0, 0, 0, 0), "'w': exponents go"),
        # Of four bytes, as many as a multiple takes that all values are.
        ([NAME, b"\x21\1" + varint(1 << 40) + b"\4"], bytes(4), (0, 0, 0, 1, 0), "most for 'w'; with its size it may"),
    ],
)
def test_wrong_parts_of_version_3_are_refused_even_with_a_valid_hash(path, parts, sections, counts, message):
    craft_third(path, parts, sections, counts)
    with pytest.raises(FormatError, match=message):
        load_packed(path)


def test_names_that_copy_a_long_one_are_refused(path):
    """A hundred times 200,000 bytes, for five bytes each."""
    long = b"\0\0\0" + varint(200_000) + b"w" * 200_000
    copies = [b"\1" + varint(200_000) + b"\0\0"] * 100
    craft_third(path, [long, *copies], b"", (101, 0, 0, 0, 0))
    with pytest.raises(FormatError, match="names of more than"):
        load_packed(path)


def test_a_grid_takes_no_table_of_values(path):
    places = np.array([-2, -1, 0, 1, 3])
    indices = np.random.default_rng(0).integers(5, size=(8, 9)).astype(np.uint16)
    levels = (places * 0.375).astype(np.float32)
    for step, octets in ((0.375, 3), (0.3, 10), (0.1875, 3), (None, 10)):
        sizes = write_packed(
            path, {"w": np.zeros((8, 9))}, {"w": Shared(levels, indices, step=step)}, {}, {}, {}, "entropy"
        )
        assert sizes["codebooks"] == octets
        assert np.array_equal(load_packed(path)["w"], levels[indices])


@pytest.mark.parametrize(("places", "octets"), [([-2, -1, 0, 1, 3], 10), ([-5, 0, 1, 2, 65_535], 20)])
def test_a_grid_that_a_reader_could_not_tell_is_written_as_a_table(path, places, octets):
    """Of one value that no weight takes a reader knows nothing, and places more than 65,535 apart are no indices."""
    levels = (np.array(places) * 0.375).astype(np.float32)
    taken = 4 if octets == 10 else 5
    indices = np.random.default_rng(0).integers(taken, size=(8, 9)).astype(np.uint16)
    shared = {"w": Shared(levels, indices, step=0.375)}
    sizes = write_packed(path, {"w": np.zeros((8, 9))}, shared, {}, {}, {}, "entropy")
    assert sizes["codebooks"] == octets
    assert np.array_equal(read_shared(path)[0]["w"].codebook, levels)
    assert np.array_equal(load_packed(path)["w"], levels[indices])


def test_steps_of_a_norm_beyond_int32_are_refused():
    def section(least: int) -> memoryview:
        steps = varint(zigzag(least)) + b"\0" + encode(np.array([0, 1]))
        return memoryview(struct.pack("<f", 0.5) + steps)

    for least in (-(2**31), 2**31 - 2):
        assert read_folded(section(least), 2, 1e-5).steps.tolist() == [least, least + 1]
    with pytest.raises(ValueError, match="a step is not an int32"):
        read_folded(section(2**31 - 1), 2, 1e-5)
    with pytest.raises(ValueError, match="out of bounds"):
        read_folded(section(-(2**31) - 1), 2, 1e-5)


@pytest.mark.parametrize(
    ("tensor", "octets"),
    [
        ([0.1, 7.0], 8),
        ([1 / 1024, 60000.0, -3.0, 0.0], 8),
        (np.arange(-20, 20) * 0.375, 40),
        ([0.0, -0.0], 4),
        ([math.inf, 1.0], 4),
        ([0.0] * 9, 4),
        ([3e38] * 9, 8),
        ([1e-45] * 9, 5),
    ],
)
def test_kept_tensors_take_the_fewest_bytes(path, tensor, octets):
    tensor = np.array(tensor, np.float32)
    sizes = write(path, {"kept": tensor}, {})
    assert sizes["kept"] <= octets
    assert load_packed(path)["kept"].numpy().tobytes() == tensor.tobytes()


def test_names_are_written_after_others(path):
    names = [f"stage{i}.block{j}.conv.weight" for i in range(4) for j in range(8)]
    sizes = write(
        path, {name: np.zeros((2, 2), np.float32) for name in names}, dict.fromkeys(names, random_codebook(1))
    )
    assert list(load_packed(path)) == names
    # Five bytes of entry and at most six of a name.
    assert sizes["header"] < 80 + 64 + 32 * 14


@pytest.mark.parametrize("source", [b"", b"nothing of the kind", b"\xff" * 40])
def test_bytes_that_are_no_packed_file_are_refused(source):
    with pytest.raises(FormatError, match="packed file: not a whole safetensors file"):
        load_packed(source)


@pytest.mark.parametrize(
    "file", ["golden_v1.safetensors", "golden_v2_entropy.safetensors", "golden_v3_entropy.safetensors"]
)
def test_bytes_are_read_as_the_file_is(file):
    path = DATA / file
    content = path.read_bytes()
    found, expected = load_packed(content), load_packed(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert contents(content) == contents(path)
    assert read_index(content) == read_index(path)


def test_what_is_packed_to_bytes_is_what_is_written(path):
    sizes = write_sample(path)
    content, packed = pack(*sample_parts(), "entropy")
    assert (content, packed) == (path.read_bytes(), sizes)


@pytest.mark.parametrize("unit", [math.nan, math.inf, 3e38])
def test_shifts_that_are_not_finite_are_refused(path, unit):
    folded = section(struct.pack("<fi", unit, 2), b"\0")
    entries = {"shared": {"w": [[2], 1, len(SMALL)]}, "folded": {"bn": [0, 0.001, len(folded)]}}
    craft_second(path, SMALL + folded, **entries)
    with pytest.raises(FormatError, match="'bn': the batch norm is not finite"):
        load_packed(path)


@pytest.mark.parametrize("key", ["version", "form", "shared", "folded", "batch_norm", "kept", "aliases", "payload"])
def test_an_index_without_a_key_is_refused(path, key):
    craft_second(path, KEPT, kept={"a": [[2], "f4"]})
    with safe_open(path, "numpy") as file:
        index = json.loads(file.metadata()["wshare"])
    del index[key], index["hash"]
    index["hash"] = text_hash(json.dumps(index, separators=(",", ":")).encode())
    save_file({"payload": np.frombuffer(KEPT, np.uint8)}, path, {"wshare": json.dumps(index, separators=(",", ":"))})
    with pytest.raises(FormatError, match="damaged index"):
        load_packed(path)


def test_tensors_beside_the_payload_or_without_it_are_refused(path):
    craft_second(path, b"")
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    empty = np.zeros(0, np.uint8)
    assert load_packed(path) == {}
    for tensors in ({"payload": empty, "x": empty}, {"x": empty}, {}, {"payload": np.zeros((0, 1), np.uint8)}):
        save_file(tensors, path, metadata)
        with pytest.raises(FormatError, match="payload|'x'"):
            load_packed(path)


def test_deeply_nested_metadata_is_refused(path):
    craft(path, {}, metadata={"wshare": "[" * 100_000})
    with pytest.raises(FormatError, match="damaged index"):
        load_packed(path)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_memory_is_at_most_twice_the_result(path, form):
    state = {"w": np.random.default_rng(0).laplace(size=(1 << 21, 2)).astype(np.float32)}
    indices = nearest_indices(state["w"], random_codebook(30))
    exponents = (np.arange(1 << 21) % 5).astype(np.int16)
    write_packed(path, state, {"w": Shared(random_codebook(30), indices, exponents)}, {}, {}, {}, form)
    tracemalloc.start()
    load_packed(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2.2 * 4 * indices.size + path.stat().st_size


def wrong_parts() -> dict[str, tuple]:
    codebook, indices = random_codebook(3), np.array([0, 1, 2], np.uint16)
    steps = np.zeros(3, np.int32)
    return {
        "past the codebook": (Shared(codebook[:2], indices), None),
        "ascending": (Shared(codebook[::-1], indices), None),
        "finite": (Shared(np.array([0, 1, np.nan], np.float32), indices), None),
        "float32": (Shared(codebook.astype(np.float64), indices), None),
        "for a tensor": (Shared(codebook, indices[:2]), None),
        "exponents for": (Shared(codebook, indices, np.zeros(2, np.int16)), None),
        "exponents go": (Shared(codebook, indices, np.full(3, 1009, np.int16)), None),
        "outputs by axis": (Shared(codebook, indices, None, Layout(1)), None),
        "steps": (Shared(codebook, indices), FoldedNorm("w", steps[:2], 1, 1e-3, True)),
        "shifts are not finite": (Shared(codebook, indices), FoldedNorm("w", steps + 1, np.inf, 1e-3, True)),
        "eps": (Shared(codebook, indices), FoldedNorm("w", steps, 1, 1e7, True)),
    }


@pytest.mark.parametrize("message", list(wrong_parts()))
def test_what_could_not_be_read_is_not_written(path, message):
    shared, folded = wrong_parts()[message]
    norms = {} if folded is None else {"bn": folded}
    with pytest.raises(ValueError, match=message):
        write_packed(path, {"w": np.zeros(3, np.float32)}, {"w": shared}, {}, norms, {}, "fixed")
    assert not path.exists()


def test_a_form_that_is_none_is_refused(path):
    with pytest.raises(ValueError, match="format 'zip'"):
        write(path, {}, {}, form="zip")
