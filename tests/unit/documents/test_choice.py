"""The first table of docs/exports.md: what each of its rows says to run is run, on a small network.

Commands of wshare, the program in C and Python lines are those of the table, but for the architecture, which is the
small network. What they give is held against the dense network, or as far as Linux allows: predictions of Core ML need
macOS, so that a package is only read again; tests/browser runs the page.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import wshare
from wshare.cli import main
from wshare.models.zoo import build
from wshare.nn import SharedWeights
from wshare.packed.format import load_packed, read_shared

from ...decoder.build import FOLDER
from ..exports import test_coreml, test_qdq
from ..exports.test_c import COMPILER, FLAGS
from .test_code_blocks import C_PROGRAM, PACKED, ROOT, in_language, prepared  # noqa: F401

PAGE = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \| \[.+?\]\((.+?)\) \|$", re.MULTILINE)
ROWS = {cells[0]: cells[1:] for cells in ROW.findall(PAGE.partition("\n## ")[0])}
INTEGERS = "a runtime that takes integers, ONNX Runtime among them"
ARCHITECTURE = "--architecture mobilenet_v2"
GRAY = '{"channels": 1, "crop": 28, "mean": [0.0], "std": [1.0]}'
MODULE = "from wshare.models.zoo import build\n\n\ndef small():\n    return build('lenet5', {})\n"
SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { open } from "./wshare.mjs";
const bytes = readFileSync("packed.safetensors");
%s
writeFileSync("browser.data", packed.data());
"""
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (gcc, cc or clang) is on the path")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="node is not on the path")


@pytest.fixture
def ready(request, prepared, tmp_path, monkeypatch):  # noqa: F811
    """The working directory with `packed.safetensors`, and names that the lines of the table use."""
    if request.node.callspec.params["row"] == INTEGERS:
        test_qdq.pack(prepared["model"], Path("packed.safetensors"), (127, 7))
    else:
        shutil.copy(PACKED, "packed.safetensors")
    (tmp_path / "tiny_network.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    dense = build("lenet5", {}).eval()
    dense.load_state_dict(load_packed("packed.safetensors"))
    return prepared | {"dense": dense, "wshare": wshare}


def carried_out(code, names):
    """Run each span of code in a cell; what Python lines name lies in `names` then."""
    for line in re.findall(r"`([^`]+)`", code):
        words = shlex.split(line.replace(ARCHITECTURE, "--architecture python:tiny_network:small"))
        if words[0] == "wshare":
            graph = ["--preprocessing", GRAY] if "--architecture" in words else []
            assert main(words[1:] + graph) in (0, None)
        elif words[0] == "cc":
            subprocess.run([COMPILER, *words[1:-1], ROOT / words[-1]], check=True)
        elif words[0].startswith("./"):
            names["listing"] = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        elif line == "packed.data()":
            # The last line of the script.
            assert line in SCRIPT
        elif "await" in line:
            shutil.copy(FOLDER / "wshare.js", "wshare.mjs")
            Path("script.mjs").write_text(SCRIPT % line)
            subprocess.run(["node", "script.mjs"], check=True)
        else:
            exec(line, names)


def as_dense(names, given):
    """Whether logits are the dense network's, to the bit."""
    with torch.inference_mode():
        return torch.equal(given(names["images"]), names["dense"](names["images"]))


def same_in_onnxruntime(names):
    session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": names["images"].numpy()})
    with torch.inference_mode():
        expected = names["dense"](names["images"]).numpy()
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def in_python(names):
    assert as_dense(names, names["network"])


def in_little_memory(names):
    assert as_dense(names, names["small"])
    assert isinstance(names["small"].fc1, SharedWeights)
    assert names["small"].conv1.shared.held


def beside_the_packed_file(names):
    same_in_onnxruntime(names)
    assert not Path("browser.data").exists()


def as_integers(names):
    same_in_onnxruntime(names)
    kinds = {tensor.data_type for tensor in onnx.load("network.onnx").graph.initializer}
    assert kinds >= {onnx.TensorProto.INT8, onnx.TensorProto.INT4}


def on_a_page(names):
    Path("network.onnx.data").write_bytes(Path("browser.data").read_bytes())
    same_in_onnxruntime(names)


def in_c(names):
    state, octets = load_packed("packed.safetensors"), Path("weights.bin").read_bytes()
    lines = [line.split("\t") for line in names["listing"].splitlines()]
    assert {line[0] for line in lines} == state.keys()
    for name, *_, start, length in lines:
        assert octets[int(start) : int(start) + int(length)] == state[name].numpy().tobytes()


def on_a_device(names):
    (block,) = (block for block in in_language("c") if block.page.name == "exports.md")
    octets = ", ".join(map(str, Path("network.bin").read_bytes()))
    Path("block.c").write_text(C_PROGRAM % (block.text, octets))
    subprocess.run([COMPILER, *FLAGS, "block.c", "-o", "block"], check=True)
    found = subprocess.run(["./block"], stdout=subprocess.PIPE, check=True).stdout
    assert found.startswith(names["dense"].fc1.weight.detach().numpy().tobytes())


def in_core_ml(names):
    operations = test_coreml.read(Path("network.mlpackage"))
    values = (test_coreml.value_of(operation) for operation in operations)
    found = {np.asarray(value).tobytes() for value in values if value is not None}
    shared, _ = read_shared("packed.safetensors")
    assert all(tensor.weight().tobytes() in found for tensor in shared.values())


def anywhere(names):
    found, expected = load_file("network.safetensors"), load_packed("packed.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


CHECKS = {
    "Python with PyTorch": (in_python, ()),
    "the same, with little memory": (in_little_memory, ()),
    "ONNX Runtime, on a server or a desktop": (same_in_onnxruntime, ()),
    "ONNX Runtime, with the smallest download": (beside_the_packed_file, ()),
    INTEGERS: (as_integers, ()),
    "a web page": (on_a_page, needs_node),
    "C or C++ on Linux or another system": (in_c, needs_compiler),
    "a microcontroller without an operating system": (on_a_device, needs_compiler),
    "iPhone, iPad or Mac": (in_core_ml, ()),
    "any other program": (anywhere, ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, marks=marks) for row, (_, marks) in CHECKS.items()])
def test_what_a_row_says_to_run_gives_the_network(row, ready):
    code, *_ = ROWS[row]
    carried_out(code, ready)
    CHECKS[row][0](ready)


def test_every_row_is_checked():
    assert list(ROWS) == list(CHECKS)
    assert PAGE.partition("\n## ")[0].count("\n| ") == len(ROWS) + 1


@pytest.mark.parametrize("row", CHECKS)
def test_the_link_of_a_row_leads_to_a_section(row):
    page, _, section = ROWS[row][-1].partition("#")
    text = (ROOT / "docs" / (page or "exports.md")).read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert section in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads]
