"""Layers named like columns, keys and devices go through workflow, report, exports and API with every figure right."""

import json
import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import wshare
from wshare.artifacts.front import LAYER, layer_columns
from wshare.commands.export import export
from wshare.files.sealed import read_json
from wshare.files.tables import read_sealed
from wshare.packed.format import load_packed, read_shared

from ..runs import made_once
from . import named
from .conftest import run_network

SEARCHES = ("rate", "few")
STUDY = {
    "datasets": {"digits": {"source": "python", "function": "named:digits", "split": {"search": 300, "held_out": 300}}},
    "models": {
        "named": {
            "source": "python",
            "architecture": "named:network",
            "dataset": "digits",
            "preprocessing": {"channels": 1, "crop": 8},
        }
    },
    "searches": {
        "rate": {"method": "rate_distortion", "quality_target": 0.9, "confidence": None, "options": {"evaluations": 4}},
        "few": {"method": "slope", "quality_target": 0.9, "confidence": None, "options": {"evaluations": 4}},
    },
    "clustering": {"k_max": 16, "candidates": [2, 4, 16]},
    "importance": {"images": 16},
    "sensitivity": {"images": 64, "layers_per_job": 12},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the network in a finished run."""
    return made_once(tmp_path_factory, "names", lambda folder: run_network(folder, STUDY, named)) / "results/named"


def columns_of(path: Path) -> list[str]:
    """Columns of a table that ends with a line of hashes."""
    return next(line for line in path.read_text().splitlines() if not line.startswith("#")).split(",")


@pytest.mark.parametrize("search", SEARCHES)
def test_front_keeps_layers_and_figures_apart(results: Path, search: str):
    folder = results / "search" / search
    columns = columns_of(folder / "front.csv")
    assert len(set(columns)) == len(columns)
    assert columns[-len(named.NAMES) :] == [f"{LAYER}{name}" for name in named.NAMES]
    rows, _ = read_sealed(folder / "front.csv")
    recipe = read_json(folder / "recipe.json")
    (chosen,) = (row for row in rows if row["chosen"] == "1")
    ks = {name: "dense" if layer["k"] is None else str(layer["k"]) for name, layer in recipe["layers"].items()}
    assert layer_columns(chosen) == ks
    on_search = recipe["on_search_images"]
    assert {"kl", "low", "images"} <= on_search.keys() & chosen.keys()
    assert all(float(chosen[key]) == on_search[key] for key in on_search.keys() & chosen.keys())
    dense = 32 * sum(math.prod(layer["shape"]) for layer in recipe["layers"].values())
    assert all(float(row["compression_rate_analytic"]) == pytest.approx(dense / float(row["bits"])) for row in rows)


def test_bits_of_a_recipe_by_k_are_those_of_its_layers(results: Path):
    folder = results / "search/few"
    rows, _ = read_sealed(folder / "front.csv")
    shapes = {name: layer["shape"] for name, layer in read_json(folder / "recipe.json")["layers"].items()}
    for row in rows:
        bits = 0
        for name, k in layer_columns(row).items():
            weights = math.prod(shapes[name])
            bits += 32 * weights if k == "dense" else math.ceil(math.log2(int(k))) * weights + 32 * int(k)
        assert int(row["bits"]) == bits


def test_tables_name_every_layer(results: Path):
    assert [layer["name"] for layer in read_json(results / "model/layers.json")["layers"]] == list(named.NAMES)
    sensitivity, _ = read_sealed(results / "sensitivity.csv")
    assert {row["layer"] for row in sensitivity} == set(named.NAMES)
    losses, _ = read_sealed(results / "search/rate/losses.csv")
    assert [row["layer"] for row in losses] == list(named.NAMES)


@pytest.mark.parametrize("search", SEARCHES)
def test_packed_file_holds_what_the_recipe_says(results: Path, search: str):
    folder = results / "search" / search
    recipe, (shared, _) = read_json(folder / "recipe.json"), read_shared(folder / "packed.safetensors")
    assert read_json(folder / "metrics.json")["verdict"] in ("met", "undecided", "missed")
    original = load_file(results / "model/weights.safetensors")
    found = load_packed(folder / "packed.safetensors")
    assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in original.items()}
    dense = {name for name, layer in recipe["layers"].items() if layer["k"] is None}
    assert set(shared) == {f"{name}.weight" for name in named.NAMES if name not in dense}
    for name in dense:
        assert torch.equal(found[f"{name}.weight"], original[f"{name}.weight"])
    if search == "few":
        assert {name: len(shared[f"{name}.weight"].codebook) for name in named.NAMES if name not in dense} == {
            name: layer["k"] for name, layer in recipe["layers"].items() if layer["k"] is not None
        }


@pytest.mark.parametrize("search", SEARCHES)
def test_report_shows_every_layer(results: Path, search: str):
    page = (results / "report/index.html").read_text()
    rows, _ = read_sealed(results / "search" / search / "front.csv")
    (chosen,) = (row for row in rows if row["chosen"] == "1")
    ks = layer_columns(chosen)
    charts = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)[1])["specs"]
    bars = charts[f"{search}/bits"]["data"]["values"]
    assert {bar["layer"]: bar["k"] for bar in bars} == ks
    assert {cell["layer"] for cell in charts[f"{search}/sensitivity"]["data"]["values"]} == set(named.NAMES)
    table = page.partition(f'<table id="layers-{search}">')[2].partition("</table>")[0]
    head, *cells = (
        [unescape(cell) for cell in re.findall(r'data-value="(.*?)"', row)] for row in table.split("<tr>")[1:]
    )
    assert head == []
    assert {row[0]: row[4] or "dense" for row in cells} == ks
    bits = {bar["layer"]: bar["bits"] for bar in bars}
    assert {row[0]: float(row[5]) for row in cells} == pytest.approx(bits, rel=1e-3)


@pytest.mark.parametrize("search", SEARCHES)
def test_exports_give_the_same_network(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str):
    packed = results / "search" / search / "packed.safetensors"
    monkeypatch.syspath_prepend(Path(named.__file__).parent)
    export(packed, to="dense", output=tmp_path / "net.safetensors")
    export(packed, to="c", output=tmp_path / "net.bin")
    graph = {"architecture": "python:named:network", "preprocessing": {"channels": 1, "crop": 8}}
    export(packed, to="onnx", output=tmp_path / "net.onnx", **graph)
    expected = load_packed(packed)
    exported = load_file(tmp_path / "net.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in expected.items())
    # One place a tensor: no two names became one identifier.
    header = (tmp_path / "net.h").read_text()
    for key in expected:
        assert len(re.findall(rf"\bNET_{key.replace('.', '_').upper()} =", header)) == 1
    model = named.network()
    model.load_state_dict(expected)
    images = torch.from_numpy(named.pixels()[:50]).float()[:, None] / 255
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["rate_distortion", "slope"])
def test_api_compresses_every_layer(method: str):
    model, images = named.network(), torch.from_numpy(named.pixels()).float()[:, None] / 255
    options = {"evaluations": 3}
    result = wshare.compress(model, images, quality=0.9, confidence=None, method=method, options=options)
    assert list(result.recipe["layers"]) == list(named.NAMES)
    (chosen,) = (row for row in result.front if row["chosen"])
    ks = {name: "dense" if layer["k"] is None else layer["k"] for name, layer in result.recipe["layers"].items()}
    assert layer_columns(chosen) == ks
    on_search = result.recipe["on_search_images"]
    assert all(chosen[key] == on_search[key] for key in ("kl", "low", "images", "relative_quality"))
    assert all(torch.equal(tensor, result.state_dict()[key]) for key, tensor in result.model.state_dict().items())
