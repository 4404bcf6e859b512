"""Weights of recurrent layers and attentions, which are layers called as their tensors, go through the workflow."""

from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import load_file

from wshare.artifacts.front import layer_columns
from wshare.cli import main
from wshare.files.sealed import read_json
from wshare.files.tables import read_sealed
from wshare.packed.format import load_packed, read_shared

from ..runs import made_once
from . import sequences
from .conftest import run_network

SEARCHES = ("rate", "one")
STUDY = {
    "datasets": {
        "digits": {
            "source": "python",
            "function": "sequences:digits",
            "split": {"search": 150, "held_out": 150},
            "calibration": {"function": "sequences:further"},
        }
    },
    "models": {
        "reader": {
            "source": "python",
            "architecture": "sequences:network",
            "dataset": "digits",
            "preprocessing": {"channels": 1, "crop": 8},
        }
    },
    "searches": {
        "rate": {"method": "rate_distortion", "quality_target": 0.9, "confidence": None, "options": {"evaluations": 5}},
        "one": {"method": "uniform", "quality_target": 0.9, "confidence": None, "options": {"max_bits": 6}},
    },
    "clustering": {"k_max": 64, "candidates": [4]},
    "importance": {"images": 16},
    "sensitivity": {"images": 32, "layers_per_job": 12},
}
NAMES = [
    *("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l0_reverse", "rnn.weight_hh_l0_reverse"),
    *("gru.weight_ih_l0", "gru.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj", "head"),
]
TENSORS = {name: name if "weight" in name else f"{name}.weight" for name in NAMES}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the network in a finished run."""
    return (
        made_once(tmp_path_factory, "sequences", lambda folder: run_network(folder, STUDY, sequences))
        / "results/reader"
    )


def test_further_images_go_into_calibration_alone(results: Path):
    with h5py.File(results / "images/calibration.h5") as file:
        assert len(file["images"]) == 40
        assert "labels" not in file
    folder = results / "search/rate"
    recipe = read_json(folder / "recipe.json")
    assert recipe["artifacts"]["calibration"] == {"images": 512, "seed": 0, "further_images": 40}
    assert recipe["images_forwarded"]["calibration"] == 2 * (150 + 40)
    assert read_json(folder / "metrics.json")["compressed"]["images"] == 150
    assert "prepare_calibration" in read_json(folder / "timings.json")["seconds"]


@pytest.mark.parametrize("given", [True, False])
def test_a_recipe_that_had_further_images_takes_them_again(results: Path, tmp_path: Path, monkeypatch, capsys, given):
    folder, output = results / "search/rate", tmp_path / "again.safetensors"
    monkeypatch.chdir(results.parents[1])
    monkeypatch.syspath_prepend(results.parents[1])
    command = ["apply", "--recipe", str(folder / "recipe.json"), "--spec", str(results / "model/model.json")]
    command += ["--search-images", str(results / "images/search.h5"), "--output", str(output)]
    further = ["--calibration-images", str(results / "images/calibration.h5")] if given else []
    assert main(command + further) == (0 if given else 1)
    if given:
        assert output.read_bytes() == (folder / "packed.safetensors").read_bytes()
    else:
        assert "40 further images for calibration, and none are given" in capsys.readouterr().err
        assert not output.exists()


def test_every_stage_names_them(results: Path):
    assert [layer["name"] for layer in read_json(results / "model/layers.json")["layers"]] == NAMES
    assert {row["layer"] for row in read_sealed(results / "sensitivity.csv")[0]} == set(NAMES)
    page = (results / "report/index.html").read_text()
    assert all(f">{name}<" in page or f'"{name}"' in page for name in NAMES)


@pytest.mark.parametrize("search", SEARCHES)
def test_packed_file_holds_what_the_search_chose(results: Path, search: str):
    folder = results / "search" / search
    recipe, (shared, _) = read_json(folder / "recipe.json"), read_shared(folder / "packed.safetensors")
    assert list(recipe["layers"]) == NAMES
    assert set(shared) == set(TENSORS.values())
    for name, layer in recipe["layers"].items():
        assert list(shared[TENSORS[name]].indices.shape) == layer["shape"]
        # Another method's k are those of the half that was measured.
        assert search != "one" or len(shared[TENSORS[name]].codebook) == layer["k"]
    (chosen,) = (row for row in read_sealed(folder / "front.csv")[0] if row["chosen"] == "1")
    assert layer_columns(chosen) == {name: str(layer["k"]) for name, layer in recipe["layers"].items()}
    original, found = load_file(results / "model/weights.safetensors"), load_packed(folder / "packed.safetensors")
    assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in original.items()}
    network = sequences.network()
    network.load_state_dict(found)
    images = torch.from_numpy(sequences.pixels()).float()[:, None] / 255
    with torch.no_grad():
        agreed = (network(images).argmax(1) == sequences.network()(images).argmax(1)).float().mean()
    assert agreed > 0.8
    assert read_json(folder / "metrics.json")["verdict"] in ("met", "undecided")
