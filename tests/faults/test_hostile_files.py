"""Files made by someone who wishes us ill: refused in one line, in little time and memory, and nothing is run."""

import functools
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from wshare.artifacts.weights import read_layer, write_weights
from wshare.errors import FormatError, UserError
from wshare.files.sealed import read_json
from wshare.models.layers import Choice, inspect
from wshare.models.weights_file import read_state
from wshare.packed.format import load_packed

from ..fuzz.seeds import model_files
from ..fuzz.targets import TARGETS, seal, split, with_hash, without_hash

DATA = Path(__file__).parents[1] / "data"
FIRST, *SECOND = [DATA / f"golden_{name}.safetensors" for name in ("v1", "v2_entropy", "v2_fixed")]
THIRD = [DATA / f"golden_{name}.safetensors" for name in ("v3_entropy", "v3_fixed")]
# Of the processor: however busy the machine is.
SECONDS = 5
MEGABYTES = 500


def refusal(read, path: Path) -> str:
    """The one line that a reader ends with, within the processor time that it has."""
    started = time.process_time()
    with pytest.raises(UserError) as error:
        read(path)
    assert time.process_time() - started < SECONDS
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Runs in a process of its own: what it may allocate is limited to what it has and 500 MB.
MUTATE = """
import json, resource, sys, time
import numpy as np
from pathlib import Path
from tests.faults.test_hostile_files import mutated
from wshare.errors import FormatError
from wshare.packed.format import load_packed
path, count = Path(sys.argv[1]), int(sys.argv[2])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (500 << 20),) * 2)
refused, slowest = 0, 0.0
for content in mutated(count):
    # A file that is written over is synced by some file systems, which takes longer than to read it.
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    started = time.process_time()
    try:
        load_packed(path)
    except FormatError as error:
        refused += 1
        assert str(path) in str(error) and "\\n" not in str(error), error
        assert "allocate" not in str(error), error
    slowest = max(slowest, time.process_time() - started)
print(json.dumps({"refused": refused, "slowest": slowest}))
"""


def mutated(count: int):
    """Packed files changed at random: half as they are, half with hashes that fit the change."""
    rng = np.random.default_rng(0)
    whole = [path.read_bytes() for path in (FIRST, *SECOND, *THIRD)]
    parts, payloads = [split(path) for path in SECOND], [without_hash(path) for path in THIRD]
    for number in range(count):
        if number % 2:
            yield change(rng, whole[rng.integers(len(whole))])
        elif number % 4:
            yield with_hash(change(rng, payloads[rng.integers(len(payloads))]))
        else:
            index, payload = parts[rng.integers(len(parts))]
            # Of the index numbers alone: other changes leave no JSON.
            if rng.integers(2):
                index = renumbered(rng, index)
            if rng.integers(2):
                payload = change(rng, payload)
            yield seal(index, payload)


def change(rng: np.random.Generator, content: bytes) -> bytes:
    """Some bytes replaced, removed, inserted or repeated."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(changed)))
        stop = start + int(rng.integers(1, 9))
        piece = (rng.bytes(stop - start), b"", rng.bytes(3) + changed[start:stop], changed[start:stop] * 2)
        changed[start:stop] = piece[rng.integers(4)]
    return bytes(changed)


def renumbered(rng: np.random.Generator, index: bytes) -> bytes:
    """One number of an index replaced by another, of any size or kind."""
    places = [place for place, octet in enumerate(index) if octet in b"0123456789"]
    place = places[rng.integers(len(places))]
    other = rng.choice([b"0", b"-1", b"1.5", b"65536", b"67108864", b"9" * 25, b"1e400", b"null", b'"x"', b"[]"])
    return index[:place] + other + index[place + 1 :]


@pytest.mark.slow
def test_10_000_changed_packed_files(tmp_path, fault):
    row = fault(9, "packed file changed at random", data="refused in one line, under 5 s and 500 MB")
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", MUTATE, str(tmp_path / "packed"), "10000"],
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'workflow'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["refused"] > 7000
    assert found["slowest"] < SECONDS
    row.tried(10_000)


@given(st.binary(max_size=300), st.integers(0, 3000), st.integers(0, 40))
def test_no_bytes_in_any_place_raise_another_error(content, start, length):
    for path in THIRD:
        payload = without_hash(path)
        TARGETS["hashed"](payload[:start] + content + payload[start + length :])
    for path in SECOND:
        index, payload = split(path)
        changed = payload[:start] + content + payload[start + length :]
        TARGETS["sealed"](len(index).to_bytes(2, "little") + index + changed)


@pytest.mark.parametrize("target", list(TARGETS))
def test_what_the_fuzzer_kept_raises_no_other_error(target):
    cases = sorted((DATA / "fuzz" / target).iterdir())
    assert cases
    for case in cases:
        started = time.process_time()
        TARGETS[target](case.read_bytes())
        assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("claim", [[1 << 26], [1 << 62], [1 << 20, 1 << 20], [0, 1 << 40], [1 << 40, 0]])
def test_a_small_file_may_not_claim_a_large_tensor(tmp_path, claim, fault):
    """A layer of one shared value has no bits for its indices, so that its size is what the file says."""
    row = fault(9, "packed file that claims more than it holds", data="refused before anything is allocated")
    content = bytes(4) + b"\0" + struct.pack("<f", 1) + b"\0"
    index = {"version": 2, "form": "fixed", "shared": {"w": [claim, 1, len(content)]}, "folded": {}}
    index |= {"batch_norm": {}, "kept": {}, "aliases": {}}
    path = tmp_path / "packed"
    path.write_bytes(seal(json.dumps(index).encode(), content))
    assert "claims" in refusal(load_packed, path)
    row.round(True)


LARGE = 3_000_000
# What a reader takes at most for each number that a file claims: u16 index, f32 weight, and where each weight has an
# exponent of its own, i16 exponent and f32 power.
BYTES_PER_NUMBER = 12


def claiming(path: Path, shape: Callable[[int], list[int]]) -> int:
    """Write a file of 3 MB with a tensor of one shared value, and an exponent for each row; the numbers it may claim.

    `shape` makes the tensor's shape of that number.
    """
    exponents = bytes(3)
    content = bytes(4) + b"\2" + struct.pack("<f", 1) + len(exponents).to_bytes(3, "little") + exponents + b"\0"
    allowed = (1 << 24) + 1024 * (len(content) + 4 + LARGE)
    index = {"version": 2, "form": "fixed", "shared": {"w": [shape(allowed), 1, len(content)]}, "folded": {}}
    index |= {"batch_norm": {}, "kept": {"other": [[LARGE], "u1"]}, "aliases": {}}
    path.write_bytes(seal(json.dumps(index).encode(), content + bytes(4 + LARGE)))
    return allowed


# In a process of its own: prints of each file the error, if there is one, else how much memory the result took at most.
READ = """
import resource, sys, torch
from pathlib import Path
from wshare.errors import FormatError
from wshare.packed.format import load_packed
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]),) * 2)
for path in sys.argv[2:]:
    before = peak()
    try:
        load_packed(path)
    except FormatError as error:
        print(error)
    else:
        print(peak() - before)
"""


def read_within(octets: int, *paths: Path) -> list[str]:
    """What `READ` prints of files, with so many bytes of memory for them."""
    program = [sys.executable, "-c", READ, str(octets), *map(str, paths)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "workflow")}
    run = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_large_file_may_claim_1024_numbers_a_byte(tmp_path, fault):
    """Bytes have to stand for what a file claims, but it may claim much; the page on the format says how much."""
    row = fault(9, "packed file that claims more than it holds", data="refused before anything is allocated")
    path = tmp_path / "packed"
    claiming(path, lambda allowed: [allowed + 1])
    assert "claims" in refusal(load_packed, path)
    row.round(True)
    # As much as it may: 37 GB. Where memory is limited that is an error like another.
    row_of_all = tmp_path / "row"
    claiming(path, lambda allowed: [allowed])
    claiming(row_of_all, lambda allowed: [1, allowed])
    printed = read_within(MEGABYTES << 20, path, row_of_all)
    assert [line.partition(": ")[0] for line in printed] == [str(path), str(row_of_all)]
    assert all("needs more memory than there is" in line for line in printed)
    row.tried(2)


def test_the_memory_of_a_claim_is_that_of_the_page_on_the_format(tmp_path):
    path = tmp_path / "packed"
    claiming(path, lambda _: [1 << 24])
    # The file itself, its payload and a few blocks come on top.
    (used,) = read_within(4 << 30, path)
    assert int(used) < BYTES_PER_NUMBER * (1 << 24) + 10 * LARGE
    words = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    assert f"up to {BYTES_PER_NUMBER} bytes of memory for each number" in " ".join(words.split())


def test_names_in_a_packed_file_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("../../x", "/etc/x", "a\0b", "x" * 5000, "A", "a")
    index = {"version": 2, "form": "fixed", "shared": {}, "folded": {}, "batch_norm": {}}
    index |= {"kept": {name: [[1], "f4"] for name in names}, "aliases": {}}
    payload = bytes(8) * len(names)
    Path("packed").write_bytes(seal(json.dumps(index).encode(), payload))
    assert set(load_packed("packed")) == set(names)
    assert os.listdir() == ["packed"]


class Canary:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


class Stub(nn.Module):
    def forward(self, x):
        return x


def bomb() -> bytes:
    """A zip archive that unpacks to 300 MB, a thousand times its size, with a state dict before it."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    with (
        zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data/9", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(1 << 20))
    return buffer.getvalue()


def header(text: bytes, payload: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def tensor(start: int, stop: int, shape: str = "[2]") -> bytes:
    return f'{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{stop}]}}'.encode()


def saved(content: object, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


HOSTILE = {
    "reduce": lambda: saved({"state_dict": {"a": Canary()}}),
    "reduce, old format": lambda: saved({"a": Canary()}, archive=False),
    "plain pickle": lambda: pickle.dumps(Canary()),
    "whole module": lambda: saved(Stub()),
    "zip bomb": bomb,
    "overlapping tensors": lambda: header(b'{"a":' + tensor(0, 8) + b',"b":' + tensor(4, 12) + b"}", bytes(12)),
    "offsets beyond the end": lambda: header(b'{"a":' + tensor(0, 8) + b"}", bytes(4)),
    "offsets backwards": lambda: header(b'{"a":' + tensor(8, 0) + b"}", bytes(8)),
    "a hole": lambda: header(b'{"a":' + tensor(4, 12) + b"}", bytes(12)),
    "shape of other bytes": lambda: header(b'{"a":' + tensor(0, 8, "[4611686018427387904]") + b"}", bytes(8)),
    "shape that overflows": lambda: header(b'{"a":' + tensor(0, 8, "[9223372036854775807, 2]") + b"}", bytes(8)),
    "key missing": lambda: header(b'{"a":{"dtype":"F32","shape":[2]}}', bytes(8)),
    "huge header": lambda: header(b"{}", length=1 << 62),
    "header of 101 MB": lambda: header(b"{" + b" " * (101 << 20) + b"}"),
    "nested header": lambda: header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "header that is no object": lambda: header(b"[]"),
    "header that is no text": lambda: header(b"{\xff\xfe}"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_model_file_is_refused(tmp_path, monkeypatch, fault, name, suffix):
    row = fault(9, "hostile model file", data="refused in one line; nothing of it is run")
    monkeypatch.chdir(tmp_path)
    path = Path(f"weights{suffix}")
    path.write_bytes(HOSTILE[name]())
    refusal(read_state, path)
    assert os.listdir() == [path.name]
    row.round(True)


def test_an_archive_may_not_unpack_to_more_than_its_size(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(bomb())
    assert "refused, it unpacks to" in refusal(read_state, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:.*TypedStorage is deprecated")
def test_changed_model_files_raise_no_other_error(tmp_path, fault):
    row = fault(9, "model file changed at random", data="refused in one line, or read")
    rng = np.random.default_rng(1)
    files = model_files()
    for _ in range(400):
        TARGETS["model"](change(rng, files[rng.integers(len(files))]))
        row.round(True)


def nested(*names: str) -> nn.Module:
    model = nn.Module()
    for name in names:
        model.add_module(name, nn.Linear(2, 3))
    return model


@pytest.mark.parametrize("names", [("/etc/passwd", "a/b\\c"), ("a\0b", "%2e"), ("ä", "a b; rm -rf ~")])
def test_layer_names_stay_in_their_folders(tmp_path, fault, names):
    row = fault(9, "layer named like a path", data="a folder of its own below layers/, or refused")
    model = nested(*names)
    table = inspect(model, [], Choice(where="models.m.layers"))
    base = (tmp_path / "layers").resolve()
    for layer in table["layers"]:
        folder = (base / layer["folder"]).resolve()
        assert folder.parent == base
        folder.mkdir(parents=True)
    weights = {name: model.get_submodule(name).weight.detach().numpy() for name in names}
    write_weights(tmp_path / "weights.h5", weights, weights, dict.fromkeys(weights, 1.0), {}, {})
    for name, weight in weights.items():
        assert np.array_equal(read_layer(tmp_path / "weights.h5", name)[0], weight)
    assert sorted(os.listdir(tmp_path)) == ["layers", "weights.h5"]
    row.round(True)


@pytest.mark.parametrize(
    ("names", "message"),
    [(("x" * 201,), "cannot be a folder"), (("Conv", "conv"), "layers 'Conv' and 'conv' would share a folder")],
)
def test_layer_names_that_cannot_be_folders_are_refused(fault, names, message):
    row = fault(9, "layer named like a path", data="a folder of its own below layers/, or refused")
    with pytest.raises(UserError, match=message):
        inspect(nested(*names), [], Choice(where="models.m.layers"))
    row.round(True)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"a": 1}', "[" * 100_000, '{"checksum": 3}', ""])
def test_json_that_is_not_ours_is_refused(tmp_path, text):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    refusal(functools.partial(read_json), path)


def test_a_file_of_tensors_that_no_reader_wrote(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match="not a packed file of wshare"):
        load_packed(tmp_path / "other.safetensors")
