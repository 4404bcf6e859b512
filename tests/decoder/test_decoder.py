"""The decoder in C gives Python's bits, and refuses the files that Python refuses."""

import contextlib
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from wshare.errors import FormatError
from wshare.exports.table import FORMATS
from wshare.packed.format import load_packed, pack, read_shared
from wshare.packed.varint import varint
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import Layout, Shared, row_scale

from ..faults.test_hostile_files import HOSTILE
from ..fuzz.targets import with_hash, without_hash
from ..unit.packed import test_adaptive, test_entropy, test_format
from .build import COMPILERS, ERRORS, FLAGS, FORMS, HERE, Tensor, compiled, decode
from .changed import FIRST, SECOND, THIRD, WAYS, changed, with_text
from .seeds import hostile

GOLDEN = (FIRST, *SECOND, *THIRD)
ARM = ["-mcpu=cortex-m4", "-mthumb", "-Os"]


def assert_same(found: list[Tensor] | str, content: bytes) -> None:
    """Python's verdict and, if it reads the file, all its tensors in its order, to the bit."""
    expected = None
    with contextlib.suppress(FormatError):
        expected = load_packed(content)
    assert isinstance(found, str) == (expected is None), f"C: {found if isinstance(found, str) else 'reads it'}"
    if expected is None:
        return
    assert [tensor.name for tensor in found] == list(expected)
    for tensor in found:
        array = expected[tensor.name].numpy()
        assert (tensor.array.dtype, tensor.array.shape) == (array.dtype, array.shape), tensor.name
        assert tensor.array.tobytes() == array.tobytes(), tensor.name


def assert_forms(found: list[Tensor], content: bytes) -> None:
    """Float32, float16, indices, codebooks and scales are those of Python."""
    shared, _ = read_shared(content)
    for tensor in found:
        assert_floats(tensor)
        if tensor.name in shared:
            assert_palette(tensor, shared[tensor.name])
        elif not tensor.k:
            assert {tensor.forms[form] for form in ("index16", "index8", "codebook", "scales")} == {"NO_FORM"}


def assert_floats(tensor: Tensor) -> None:
    if tensor.array.dtype.kind != "f":
        assert tensor.forms["float32"] == tensor.forms["float16"] == "NO_FORM"
        return
    with np.errstate(over="ignore"):
        for form in ("float32", "float16"):
            rounded = tensor.array.astype(form)
            fits = (np.isfinite(rounded) == np.isfinite(tensor.array)).all()
            assert tensor.forms[form] == (rounded.tobytes() if fits else "RANGE"), (tensor.name, form)


def assert_palette(tensor: Tensor, expected: Shared) -> None:
    k, indices = len(expected.codebook), expected.indices
    assert tensor.k == k
    assert tensor.forms["codebook"] == expected.codebook.tobytes()
    assert tensor.forms["index16"] == indices.astype(np.uint16).tobytes()
    assert tensor.forms["index8"] == (indices.astype(np.uint8).tobytes() if k <= 256 else "NO_FORM")
    scales = expected.exponents
    assert tensor.forms["scales"] == ("NO_FORM" if scales is None else row_scale(scales).tobytes())


@pytest.mark.parametrize("arguments", [(), ("odd",)], ids=["even", "odd addresses"])
def test_golden_files_decode_to_the_bit(program, arguments):
    contents = [path.read_bytes() for path in GOLDEN]
    for found, content in zip(decode(program, contents, *arguments), contents, strict=True):
        assert_same(found, content)
        assert_forms(found, content)


def random_parts(seed: int) -> tuple:
    """A network with layers of any k, shape, layout, scale and coding; arguments of `pack`."""
    rng = np.random.default_rng(seed)
    shapes = [(), (7,), (40, 30), (4, 1, 3, 3), (6, 4, 2), (0, 4), (2, 3, 5, 7), (300, 9)]
    shared: dict[str, Shared] = {}
    for number in range(6):
        shape = shapes[rng.integers(len(shapes))]
        size, k = int(np.prod(shape)), int(rng.choice([1, 2, 3, 17, 200, 300, 5000]))
        spread = np.abs(rng.normal(scale=max(1, k / rng.choice([1, 4, 50])), size=shape)).astype(np.int64)
        indices = (spread % k).astype(np.uint16)
        layout, exponents, step = Layout(), None, None
        if len(shape) > 1 and rng.integers(2):
            groups = int(rng.choice([g for g in (1, 2, 3) if g <= max(1, shape[0]) and shape[0] % g == 0]))
            layout = Layout(int(rng.integers(1, len(shape))), groups)
        if shape and rng.integers(2):
            exponents = rng.integers(*((-1008, 900) if rng.integers(2) else (-9, 9)), layout.outputs(shape))
        codebook = np.sort(rng.normal(size=k)).astype(np.float32) * np.float32(rng.choice([1, 1e-30, 1e-38]))
        if rng.integers(2):
            codebook = codebook.astype(np.float16).astype(np.float32)
        if size and rng.integers(2):
            # On a grid: only values that are there.
            places = np.unique(indices).astype(np.int64) - int(rng.integers(k))
            step, codebook = 0.0625, (places * 0.0625).astype(np.float32)
            indices = np.searchsorted(np.unique(indices), indices).astype(np.uint16)
        exponents = None if exponents is None else exponents.astype(np.int16)
        shared[f"layer{number}.weight"] = Shared(codebook, indices, exponents, layout, step)
    state = {name: np.zeros(tensor.indices.shape, np.float32) for name, tensor in shared.items()}
    folded = {}
    for number, (name, tensor) in enumerate(shared.items()):
        if tensor.indices.ndim and (tensor.exponents is None or tensor.exponents.max(initial=0) < 500):
            steps = rng.integers(-(10**6), 10**6, tensor.layout.outputs(tensor.indices.shape)).astype(np.int32)
            folded[f"norm{number}"] = FoldedNorm(name, steps, 1e-5, 1e-3, bool(rng.integers(2)))
    scale, shift = rng.normal(size=(2, 5)).astype(np.float32)
    norms = {"bn": BatchNorm(scale, shift, 1e-5, True), "plain": BatchNorm(scale, shift, 1e-3, False)}
    values = rng.normal(size=200)
    state |= {kind: values.astype(kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u2", "u4", "u8")}
    state |= {"large": values * 1e300, "steps": (rng.integers(-9, 9, (5, 9)) * 0.375).astype(np.float32)}
    state |= {"halves": values.astype(np.float16).astype(np.float32), "é ": np.array([np.nan, np.inf, -0.0], "f4")}
    return state, shared, norms, folded, {"tied": "layer0.weight", "other": "tied"}


def test_random_networks_decode_to_the_bit(program):
    forms = itertools.product(range(6), ("fixed", "entropy"))
    contents = [pack(*random_parts(seed), form)[0] for seed, form in forms]
    for found, content in zip(decode(program, contents), contents, strict=True):
        assert_same(found, content)
        assert_forms(found, content)
        places = {tensor.name: place for place, tensor in enumerate(found)}
        assert {found[places[name]].same_as for name in ("tied", "other")} == {places["layer0.weight"]}


@pytest.mark.parametrize("way", WAYS)
def test_changed_files_have_pythons_verdict(program, way):
    contents = list(changed(way, 150, 1))
    found = decode(program, contents)
    assert 0 < sum(isinstance(verdict, str) for verdict in found) < len(found)
    for verdict, content in zip(found, contents, strict=True):
        assert_same(verdict, content)


def test_hostile_files_have_pythons_verdict(program):
    contents = hostile() + [content for make in HOSTILE.values() if len(content := make()) < 1 << 20]
    found = decode(program, contents)
    for verdict, content in zip(found, contents, strict=True):
        assert_same(verdict, content)


def cases(test: Callable) -> list[tuple]:
    """What a test of Python's reader is parametrised by, without the message."""
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [case[:-1] for case in mark.args[1]]


def with_integers(count: int, k: int, octets: bytes) -> tuple:
    """A shared tensor of version 3 with these coded integers, as `craft_third` takes it."""
    section = b"\0" + np.arange(k, dtype="<f4").tobytes() + octets
    return [test_format.NAME, b"\1" + varint(count) + varint(k) + varint(len(section))], section


def forged(path: Path) -> Iterator[bytes]:
    """Files whose hashes fit, each with one thing wrong: those that the tests of Python's reader hold against it."""
    third = test_format.test_wrong_parts_of_version_3_are_refused_even_with_a_valid_hash
    made = [(test_format.craft_third, case) for case in cases(third)]
    made += [
        (test_format.craft_third, with_integers(160, 3, octets))
        for (octets,) in cases(test_entropy.test_wrong_bytes_are_refused)
    ]
    made += [
        (test_format.craft_third, with_integers(3, limit, b"\x7f" + octets))
        for octets, limit in cases(test_adaptive.test_bytes_that_are_no_integers_are_refused)
    ]
    made.append((test_format.craft_third, with_integers(3, 3, bytes([2, 0b01_10_01_00]))))
    name, entry = test_format.NAME, b"\7\1\1"
    # Aliases of themselves, and of an alias that comes later.
    made.append((test_format.craft_third, ([name, b"\0\0\0\1a", b"\1\1\0\0", entry], b"x", (0, 0, 0, 1, 1))))
    names = [b"\0\0\0\1" + letter for letter in (b"a", b"b", b"b", b"w")]
    made.append((test_format.craft_third, ([name, *names, entry], b"x", (0, 0, 0, 1, 2))))
    for craft, case in made:
        craft(path, *case)
        yield path.read_bytes()
    for parts, shape, k in cases(test_format.test_wrong_shared_tensors_are_refused_even_with_valid_hashes):
        octets = test_format.section(*parts)
        test_format.craft_second(path, octets, shared={"w": [shape, k, len(octets)]})
        yield path.read_bytes()
    for payload, entries in cases(test_format.test_wrong_parts_of_version_2_are_refused_even_with_valid_hashes):
        test_format.craft_second(path, payload, **entries)
        yield path.read_bytes()
    for case in cases(test_format.test_inconsistent_indices_and_codebooks_are_refused_even_with_valid_hashes):
        test_format.craft_shared(path, *case)
        yield path.read_bytes()


def test_forged_files_are_refused(program, tmp_path):
    contents = list(forged(tmp_path / "packed"))
    found = decode(program, contents)
    assert [place for place, verdict in enumerate(found) if not isinstance(verdict, str)] == []
    for verdict, content in zip(found, contents, strict=True):
        assert_same(verdict, content)


EPSILONS = [
    "0",
    "-0",
    "-0.0",
    "1",
    "1e-5",
    "-1E-05",
    "1e-400",
    "-4.9e-324",
    "999999.9999",
    "1e6",
    "1.",
    "01",
    "+1",
    ".5",
]
# Half-way between two float32, for the double that is nearest; and one letter more than may be.
EPSILONS += [
    "-1.0000001788139343",
    "-1.00000005960464477",
    "-0." + "1" * 37,
    "0." + "1" * 39,
    "1e+2",
    "1e",
    "0e9999999",
]
NAMES = [
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00",
    "\\ud800\\ud800",
    "\\ud800x",
    "\\u00E9",
    "\\/",
    "\\x",
    "\\u12",
    "é",
    "\t",
]


def test_numbers_and_escapes_of_an_index_are_read_as_python_reads_them(program):
    changes = [(b"0.001", eps.encode()) for eps in EPSILONS]
    changes += [(b'"aliases":{', b'"aliases":{"%s":"fc.weight",' % name.encode()) for name in NAMES]
    contents = [with_text(lambda text, old=old, new=new: text.replace(old, new)) for old, new in changes]
    found = decode(program, contents)
    for verdict, content in zip(found, contents, strict=True):
        assert_same(verdict, content)
    assert 10 < sum(isinstance(verdict, str) for verdict in found) < len(found) - 10


def test_every_cut_and_every_changed_bit_of_a_byte_is_refused(program):
    """Hashes find them all: in C as in Python, but for the header's own white space."""
    whole = THIRD[0].read_bytes()
    start = whole.index(b"}}") + 2
    cuts = [whole[:size] for size in range(0, len(whole), 7)]
    flips = [whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :] for place in range(start, len(whole), 3)]
    assert [verdict for verdict in decode(program, cuts + flips) if not isinstance(verdict, str)] == []


# Version 3 up to the section of 11 bytes of a batch norm, folded into one weight of 0; its eps is 0.
FOLDED = b"\3\1\1\1\0\0\0\1" + bytes(8) + b"\0\0\0\1w\0\0\0\1n" + b"\1\1\1\6\0\0\13" + bytes(6)


def test_a_folded_batch_norm_whose_steps_fit_is_read(program):
    content = with_hash(FOLDED + b"\0\0\0\x3f" + varint((1 << 32) - 2) + b"\0\0")
    (found,) = decode(program, [content])
    assert_same(found, content)
    assert found[2].array.tolist() == [2**30]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "NO_FILE"),
        (b"x" * 100, "NO_FILE"),
        (with_hash(b"\4" + without_hash(THIRD[0])[1:]), "VERSION"),
        (THIRD[0].read_bytes()[:-1] + b"\0", "HASH"),
        (with_hash(without_hash(THIRD[0]) + b"\0"), "INDEX"),
        # A kept tensor of 2^40 equal numbers, coded in a few bytes.
        (with_hash(b"\3\1\0\0\0\1\0\0" + b"\0\0\0\1a" + b"\x21\1\x80\x80\x80\x80\x80\x20\4" + b"\0\0\0\0"), "CLAIM"),
        # A step of 2^31 in a folded batch norm.
        (with_hash(FOLDED + b"\0\0\0\x3f" + varint(1 << 32) + b"\0\0"), "TENSOR"),
        # Two kept tensors of one name.
        (with_hash(b"\3\1\0\0\0\2\0\0" + b"\0\0\0\1a" * 2 + b"\x07\1\1" * 2 + b"xy"), "TWICE"),
    ],
)
def test_errors_say_what_is_wrong(program, content, code):
    assert decode(program, [content]) == [code]
    assert_same(code, content)


def test_version_3_alone_is_smaller_and_refuses_the_others(tmp_path):
    flags = ["-O1", "-DWSHARE_ONLY_V3"]
    program = compiled(tmp_path / "driver", HERE / "driver.c", HERE / "wshare.c", flags=flags)
    contents = [path.read_bytes() for path in GOLDEN]
    found = decode(program, contents)
    assert found[:3] == ["VERSION"] * 3
    for verdict, content in zip(found[3:], contents[3:], strict=True):
        assert_same(verdict, content)


@pytest.mark.slow
@pytest.mark.parametrize("only", [[], ["-DWSHARE_ONLY_V3"]], ids=["all versions", "version 3"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_have_nothing_to_say(tmp_path, compiler, only):
    if compiler not in COMPILERS:
        assert compiler != "gcc", "gcc is needed to test the decoder"
        pytest.skip("clang is not on the path")
    compiled(tmp_path / "wshare.o", HERE / "wshare.c", compiler=compiler, flags=["-c", "-O2", *only])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="arm-none-eabi-gcc is not on the path")
@pytest.mark.parametrize("only", [[], ["-DWSHARE_ONLY_V3"]], ids=["all versions", "version 3"])
def test_the_compiler_for_cortex_m_has_nothing_to_say(tmp_path, only):
    compiled(tmp_path / "wshare.o", HERE / "wshare.c", compiler="arm-none-eabi-gcc", flags=["-c", *ARM, *only])


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-arm")), reason="no Arm compiler, or no qemu-arm"
)
def test_a_machine_of_32_bits_without_floating_point_gives_the_same_bits(program, tmp_path):
    flags = ["-march=armv7-a", "-mthumb", "-mfloat-abi=soft", "-Os", "--specs=rdimon.specs"]
    sources = (HERE / "driver.c", HERE / "wshare.c")
    emulated = compiled(tmp_path / "driver.elf", *sources, compiler="arm-none-eabi-gcc", flags=flags)
    runner = tmp_path / "run"
    runner.write_text(f'#!/bin/sh\nexec qemu-arm {emulated} "$@"\n')
    runner.chmod(0o755)
    contents = [path.read_bytes() for path in GOLDEN] + list(changed("third", 100, 2))
    for found, content in zip(decode(runner, contents), contents, strict=True):
        assert_same(found, content)


def listed(unpack: Path, *arguments: str | Path) -> list[list[str]]:
    run = subprocess.run([unpack, *arguments], capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=1"})
    assert run.returncode == 0, run.stderr
    return [line.split("\t") for line in run.stdout.splitlines()]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_unpack_writes_npy_files_and_one_raw_file(unpack, tmp_path, path):
    expected = load_packed(path)
    lines = listed(unpack, path, "--npy", tmp_path, "--raw", tmp_path / "raw")
    assert [line[0] for line in lines] == list(expected)
    content = (tmp_path / "raw").read_bytes()
    for name, kind, shape, offset, size in lines:
        tensor = expected[name].numpy()
        assert (kind, shape) == (str(tensor.dtype), str(list(tensor.shape)))
        start = int(offset)
        assert start % 64 == 0
        assert content[start : start + int(size)] == tensor.tobytes()
        array = np.load(tmp_path / f"{name}.npy")
        assert (array.dtype, array.shape, array.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())


def test_unpack_writes_the_data_file_of_an_onnx_graph(unpack, tmp_path):
    """Python's bytes, over what was there: of all versions, of empty tensors and of tied ones."""
    random = tmp_path / "random"
    for seed in range(3):
        random.write_bytes(pack(*random_parts(seed), "entropy")[0])
        for path in (random, *(GOLDEN if not seed else ())):
            listed(unpack, path, "--raw", tmp_path / "c.data")
            FORMATS["onnx-data"].write(path, tmp_path / "python.data")
            assert (tmp_path / "c.data").read_bytes() == (tmp_path / "python.data").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.data", "python.data", "random"]


@pytest.mark.parametrize("before", [None, b"before"])
def test_unpack_leaves_no_part_of_a_raw_file(unpack, tmp_path, before):
    """What is damaged is found behind the first tensor, which is in the file by then."""
    packed, raw = tmp_path / "packed", tmp_path / "raw"
    packed.write_bytes(with_hash(FOLDED + b"\0\0\0\x3f" + varint(1 << 32) + b"\0\0"))
    if before:
        raw.write_bytes(before)
    run = subprocess.run([unpack, packed, "--raw", raw], capture_output=True, text=True)
    assert run.returncode == 1
    assert "damaged tensor" in run.stderr
    assert sorted(tmp_path.iterdir()) == ([packed, raw] if before else [packed])
    assert not before or raw.read_bytes() == before


def test_unpack_rounds_to_float16_and_lists_shared_values(unpack, tmp_path):
    assert listed(unpack, THIRD[0])[0] == ["conv.weight", "float32", "[10, 2, 3, 3]", "5"]
    lines = listed(unpack, THIRD[0], "--npy", tmp_path, "--float16")
    assert {kind for _, kind, *_ in lines} == {"float16", "int64", "bool", "uint8"}
    array = np.load(tmp_path / "conv.weight.npy")
    assert array.tobytes() == load_packed(THIRD[0])["conv.weight"].numpy().astype("f2").tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: No such file"),
        ([], "unpack <packed.safetensors>"),
        (["--what"], "--what: not understood"),
        (["../outside", "--npy", "."], "../x: no name for a file"),
        ([__file__], "no packed file"),
    ],
)
def test_unpack_says_in_a_line_what_is_wrong(unpack, tmp_path, arguments, message):
    (tmp_path / "in").mkdir()
    content, _ = pack({"../x": np.zeros(2, "f4")}, {}, {}, {}, {}, "fixed")
    (tmp_path / "outside").write_bytes(content)
    run = subprocess.run([unpack, *arguments], capture_output=True, text=True, cwd=tmp_path / "in")
    assert run.returncode == 1
    assert run.stderr.startswith("unpack: ")
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "x.npy").exists()


PAGE = HERE.parents[1] / "docs" / "decoder.md"


def test_the_example_of_the_page_reads_a_file(tmp_path):
    (example,) = re.findall(r"^```c\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(example.splitlines()) <= 40
    (tmp_path / "example.c").write_text(example)
    program = compiled(tmp_path / "example", tmp_path / "example.c")
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    run = subprocess.run([program, THIRD[0]], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stderr) == (0, "")
    tensors = {name: tensor.numpy() for name, tensor in load_packed(THIRD[0]).items()}
    floats = {name: array.ravel()[0] for name, array in tensors.items() if array.dtype.kind == "f" and array.size}
    assert dict(line.split() for line in run.stdout.splitlines()).keys() == floats.keys()
    for line in run.stdout.splitlines():
        assert np.float32(line.split()[1]) == np.float32(floats[line.split()[0]])


def test_flags_and_codes_are_those_of_the_page():
    page = PAGE.read_text()
    assert [code for code in ERRORS[1:] if f"`WSHARE_{code}`" not in page] == []
    assert [form for form in FORMS if f"`WSHARE_AS_{form.upper()}`" not in page] == []
    assert " ".join(FLAGS[:-1]) in " ".join(page.split())
    assert " ".join(ARM) in page
