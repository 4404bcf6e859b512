"""The binary for microcontrollers: what a C compiler makes of the header gives back every weight."""

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from wshare.errors import UserError
from wshare.exports.cfile import DECODER
from wshare.exports.table import FORMATS
from wshare.models import zoo as networks
from wshare.packed.format import load_packed, write_packed
from wshare.quantize.codebooks import Shared

from ..packed.test_format import write_sample
from ..test_nn import network, pack

COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (gcc, cc or clang) is on the path")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Prints what each layer of a file gives: its code, and its values as they lie in memory.
PROGRAM = r"""
#include "@HEADER@"
#include <stdio.h>
#include <stdlib.h>
int main(int count, char **arguments) {
    FILE *stream = fopen(arguments[1], "rb");
    size_t size = (size_t)strtoul(arguments[2], NULL, 10), room = (size_t)strtoul(arguments[3], NULL, 10);
    uint8_t *file = malloc(size + !size);
    float *out = malloc(4 * room + 1);
    if (count < 5 || !stream || !file || !out || fread(file, 1, size, stream) != size) return 9;
    for (int i = 4; i < count; i++) {
        memset(out, 0, 4 * room);
        int32_t code = wshare_decode(file, size, (uint32_t)strtoul(arguments[i], NULL, 10), out, room);
        fwrite(&code, 4, 1, stdout);
        fwrite(out, 4, room, stdout);
    }
    free(file);
    free(out);
    return fclose(stream);
}
"""


def compile_decoder(header: Path) -> Path:
    """A program that decodes; with sanitizers where the compiler has them."""
    source, program = header.with_suffix(".c"), header.with_suffix(".program")
    source.write_text(PROGRAM.replace("@HEADER@", header.name))
    command = [COMPILER, *FLAGS, str(source), "-o", str(program)]
    if subprocess.run([*command, *SANITIZE], capture_output=True).returncode:
        subprocess.run(command, check=True)
    return program


def decode(program: Path, file: Path, layers: list[int], room: int, size: int | None = None) -> list:
    """Code and values [room] of each layer."""
    size = file.stat().st_size if size is None else size
    command = [program, file, str(size), str(room), *map(str, layers)]
    run = subprocess.run(command, capture_output=True, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert run.returncode == 0, run.stderr.decode()
    parts = np.frombuffer(run.stdout, "u1").reshape(len(layers), 4 + 4 * room)
    return [(int(part[:4].view("i4")[0]), part[4:].tobytes()) for part in parts]


def entries(header: Path) -> dict[str, int]:
    """Numbers by identifier, from the last enumeration."""
    lines = header.read_text().rpartition("enum {")[2].partition("};")[0].split("\n")
    return {line.split("=")[0].strip(): int(line.split("=")[1].split(",")[0]) for line in lines if "=" in line}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A packed file with all there is to code, its binary and a program made with its header."""
    folder = tmp_path_factory.mktemp("c")
    packed = pack(network(), folder / "packed.safetensors", ks=(5, 16, 1, 300, 37, 256, 2))
    binary = folder / "net.bin"
    FORMATS["c"].write(packed, binary)
    return packed, binary, compile_decoder(folder / "net.h") if COMPILER else None


def check(packed: Path, binary: Path, program: Path) -> None:
    places = entries(binary.with_suffix(".h"))
    state = {name: tensor for name, tensor in load_packed(packed).items() if "num_batches" not in name}
    prefix = binary.stem.upper()
    assert {f"{prefix}_{name.replace('.', '_').upper()}" for name in state} | {f"{prefix}_END"} == places.keys()
    room = max(tensor.numel() for tensor in state.values())
    found = decode(program, binary, [places[f"{prefix}_{n.replace('.', '_').upper()}"] for n in state], room)
    for (code, octets), (name, tensor) in zip(found, state.items(), strict=True):
        assert code == 0, name
        assert octets[: 4 * tensor.numel()] == tensor.numpy().tobytes(), name


@needs_compiler
def test_c_gives_back_every_tensor_to_the_bit(small):
    check(*small)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["tiny", "resnet_ds"])
def test_c_gives_back_the_networks(tmp_path, name):
    torch.manual_seed(0)
    packed = pack(networks.build(name, {"classes": 10}), tmp_path / "packed")
    FORMATS["c"].write(packed, tmp_path / "net.bin")
    check(packed, tmp_path / "net.bin", compile_decoder(tmp_path / "net.h"))


@needs_compiler
def test_c_gives_back_all_scales(tmp_path, small):
    """Every exponent there can be, the largest value of float32 among the weights."""
    exponents = np.arange(-1008, 1009).astype(np.int16)
    indices = np.tile([0, 1], len(exponents))[: len(exponents)].astype(np.uint16)[:, None]
    shared = {"w": Shared(np.array([-3.9, 1.5e-7], np.float32), indices, exponents)}
    write_packed(tmp_path / "packed", {"w": np.zeros(indices.shape, np.float32)}, shared, {}, {}, {}, "entropy")
    FORMATS["c"].write(tmp_path / "packed", tmp_path / "net.bin")
    ((code, octets),) = decode(small[2], tmp_path / "net.bin", [0], len(exponents))
    assert code == 0
    assert octets == load_packed(tmp_path / "packed")["w"].numpy().tobytes()


def test_indices_take_their_width_and_constants_no_bits(small):
    _, binary, _ = small
    octets = binary.read_bytes()
    size, count = struct.unpack("<2I", octets[4:12])
    assert octets[:4] == b"WSHR"
    assert size == len(octets)
    total = 12 + 44 * count
    for i in range(count):
        crc, *shape, k, bits, scaled, start, data, values = struct.unpack("<11I", octets[12 + 44 * i :][:44])
        assert start == total
        assert crc == zlib.crc32(octets[start : start + data], zlib.crc32(octets[16 + 44 * i : 56 + 44 * i]))
        assert values == np.prod(shape)
        assert data == (4 * k + 2 * scaled * shape[0] + -(-values * bits // 8) if k else 4 * values)
        total += data
    assert total == size
    places = entries(binary.with_suffix(".h"))
    assert places["NET_7_WEIGHT"] == places["NET_8_WEIGHT"]
    mean = struct.unpack("<11I", octets[12 + 44 * places["NET_2_RUNNING_MEAN"] :][:44])
    assert mean[5:7] == (1, 0)


@pytest.mark.slow
@needs_compiler
def test_every_wrong_byte_is_found(small, tmp_path):
    """In the head, in the entries and in the data, one bit at a time."""
    _, binary, program = small
    octets = binary.read_bytes()
    count = struct.unpack("<I", octets[8:12])[0]
    layers, room = list(range(count)), 1600
    good = decode(program, binary, layers, room)
    rng = np.random.default_rng(0)
    damaged, first = tmp_path / "damaged.bin", 12 + 44 * count
    for place in [*range(8), *rng.integers(12, first, 40), *rng.integers(first, len(octets), 40)]:
        wrong = bytearray(octets)
        wrong[place] ^= 1 << rng.integers(8)
        damaged.write_bytes(wrong)
        found = decode(program, damaged, layers, room)
        differing = [code for (code, values), expected in zip(found, good, strict=True) if (code, values) != expected]
        assert differing == ([1] * count if place < 8 else [4])


@needs_compiler
def test_a_wrong_number_of_entries_makes_no_values(small, tmp_path):
    _, binary, program = small
    octets = bytearray(binary.read_bytes())
    count = struct.unpack("<I", octets[8:12])[0]
    for wrong, codes in ((0, {2}), (count - 1, {0, 2}), (count + 1, {0, 4}), (2**32 - 1, {1})):
        octets[8:12] = struct.pack("<I", wrong)
        (tmp_path / "damaged.bin").write_bytes(octets)
        assert {
            code for code, _ in decode(program, tmp_path / "damaged.bin", list(range(count + (wrong > count))), 1600)
        } == codes


@needs_compiler
def test_a_file_cut_short_a_wrong_layer_and_too_little_room_are_refused(small):
    _, binary, program = small
    size = binary.stat().st_size
    count = struct.unpack("<I", binary.read_bytes()[8:12])[0]
    for cut in (0, 1, 11, 12, 50, size - 1):
        assert decode(program, binary, [0], 9, size=cut)[0][0] == 1
    assert [code for code, _ in decode(program, binary, [count, 2**32 - 1], 9)] == [2, 2]
    places = entries(binary.with_suffix(".h"))
    assert decode(program, binary, [places["NET_0_WEIGHT"]], 8 * 27 - 1)[0] == (3, bytes(4 * (8 * 27 - 1)))


@needs_compiler
@pytest.mark.parametrize(
    "changes",
    [
        {5: 2**30},
        {5: 0},
        {6: 17},
        {6: 4},
        {7: 1},
        {8: 2**32 - 1},
        {9: 2**32 - 1},
        {10: 2**32 - 1},
        {1: 0},
        {1: 2**32 - 1},
        {5: 1},
    ],
)
def test_wrong_entries_are_refused_even_with_a_valid_checksum(small, tmp_path, changes):
    _, binary, program = small
    octets = bytearray(binary.read_bytes())
    at = 12 + 44 * entries(binary.with_suffix(".h"))["NET_0_WEIGHT"]
    entry = list(struct.unpack("<11I", octets[at : at + 44]))
    data = octets[entry[8] :][: entry[9]]
    for place, value in changes.items():
        entry[place] = value
    head = struct.pack("<10I", *entry[1:])
    if entry[8] < 2**31:
        data = octets[entry[8] :][: entry[9]]
    octets[at : at + 44] = struct.pack("<I", zlib.crc32(data, zlib.crc32(head))) + head
    (tmp_path / "crafted.bin").write_bytes(octets)
    assert decode(program, tmp_path / "crafted.bin", [(at - 12) // 44], 4000)[0][0] == 4


def test_the_decoder_is_small():
    assert len(DECODER.strip().split("\n")) <= 60


def test_what_c_cannot_hold_is_refused(tmp_path):
    write_sample(tmp_path / "packed")
    with pytest.raises(UserError, match="'counter' is int64"):
        FORMATS["c"].write(tmp_path / "packed", tmp_path / "net.bin")
    write_packed(tmp_path / "packed", {"w": np.zeros((1, 1, 1, 1, 2), np.float32)}, {}, {}, {}, {}, "fixed")
    with pytest.raises(UserError, match="'w' has 5 axes"):
        FORMATS["c"].write(tmp_path / "packed", tmp_path / "net.bin")
    with pytest.raises(UserError, match="suffix"):
        FORMATS["c"].write(tmp_path / "packed", tmp_path / "net.h")
    assert not (tmp_path / "net.bin").exists()


@needs_compiler
def test_names_cannot_leave_the_header(tmp_path):
    state = {name: np.arange(2, dtype=np.float32) for name in ("a b", "a.b", "*/ int x; /*", "é\n#error")}
    write_packed(tmp_path / "packed", state, {}, {}, {}, {}, "fixed")
    FORMATS["c"].write(tmp_path / "packed", tmp_path / "net.bin")
    assert len(entries(tmp_path / "net.h")) == 5
    compile_decoder(tmp_path / "net.h")
