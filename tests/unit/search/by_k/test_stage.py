"""Searches by k, from the files that the stage `search` reads to those that it writes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import wshare.stages.search as stage
from wshare.artifacts.clusters import cluster_hashes, write_clusters
from wshare.artifacts.outputs import write_outputs
from wshare.artifacts.sensitivity import columns
from wshare.calibration.clustering import cluster
from wshare.calibration.sensitivity import profile, row
from wshare.errors import UserError
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json, write_json
from wshare.files.tables import read_sealed, write_sealed
from wshare.models.zoo import tiny
from wshare.quantize.cost import layer_bits
from wshare.quantize.kmeans import sweep
from wshare.search import evaluator
from wshare.search.artifacts import Files
from wshare.stages.arguments import Machine, ModelFiles, Samples, SearchedFiles
from wshare.tasks.table import task

from .test_methods import OPTIONS

TASK = task("classification")
CLUSTERING = {
    "method": "exact",
    "k_max": 16,
    "bins": 16384,
    "weighting": "none",
    "keep_zeros": False,
    "candidates": [2, 4, 16],
    "seed": 0,
}


class Study:
    """The files that the stage `search` reads, of a tiny network on random images."""

    def __init__(self, folder: Path, images: Callable, monkeypatch: pytest.MonkeyPatch):
        torch.manual_seed(0)
        self.model, self.folder = tiny().eval(), folder
        sample = images(80)
        reference = predict(self.model, sample)
        names = ["conv", "pointwise", "fc"]
        layers, made_from = [], {"model": "0" * 64, "images": sample.fingerprint}
        for name in names:
            weight = self.model.get_submodule(name).weight.detach().numpy()
            layers.append(cluster(name, weight, None, CLUSTERING))
            write_clusters(folder / f"{name}.h5", layers[-1], CLUSTERING | {"importance": {}}, made_from)
        original = TASK.score(reference, reference, sample.labels)
        rows = [row(TASK, probe, original) for probe in profile(TASK, self.model, layers, sample, reference)]
        shared_from = cluster_hashes([folder / f"{name}.h5" for name in names], layers)
        write_sealed(folder / "sensitivity.csv", columns(TASK.PROFILED), rows, made_from | shared_from)
        write_outputs(folder / "baseline.h5", reference, sample, made_from["model"])
        description = {"name": "tiny", "task": "classification", "sha256": made_from["model"]}
        write_json(folder / "model.json", description)
        write_json(folder / "layers.json", {"model": made_from["model"], "layers": [{"name": name} for name in names]})
        (folder / "weights").write_bytes(b"weights")
        self.files = {
            "files": ModelFiles(folder / "model.json", folder / "weights"),
            "layers": folder / "layers.json",
            "samples": Samples(sample.path),
            "search_outputs": folder / "baseline.h5",
            "needs": Files(clusters=[folder / f"{name}.h5" for name in names], sensitivity=folder / "sensitivity.csv"),
            "code": "code",
            "journal": folder / "journal.jsonl",
            "found": SearchedFiles(folder / "front.csv", folder / "losses.csv", folder / "recipe.json"),
        }
        self.forwarded, self.stop_after = 0, None
        monkeypatch.setattr(stage, "read_model", lambda *_: self.model)
        monkeypatch.setattr(evaluator, "predict", self.predict)

    def predict(self, *arguments: object) -> np.ndarray:
        if self.forwarded == self.stop_after:
            raise KeyboardInterrupt
        self.forwarded += 1
        return predict(*arguments)

    def run(self, name: str, **settings: object) -> dict:
        self.forwarded = 0
        default = {"method": name, "options": OPTIONS[name], "quality_target": 0.7, "confidence": None, "seed": 0}
        packing = {"format": "fixed", "batch_norm": "auto"}
        stage.search(default | {"packing": packing} | settings, **self.files, machine=Machine(1, 0))
        return read_json(self.files["found"].recipe)


@pytest.fixture
def study(tmp_path, random_images, monkeypatch) -> Study:
    return Study(tmp_path, random_images, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_each_distinct_combination_is_forwarded_once_and_counted(study, name):
    recipe = study.run(name)
    assert recipe["evaluations"] == study.forwarded
    # The uniform search does not look at the profile: three layers with three candidates each.
    profiled = 0 if name == "uniform" else 80 * 9
    assert recipe["images_forwarded"] == {"search": 80 * study.forwarded, "profile": profiled}
    front, _ = read_sealed(study.files["found"].front)
    assert list(front[0])[-3:] == ["k:conv", "k:pointwise", "k:fc"]
    assert sorted(int(line["evaluation"]) for line in front) == list(range(1, len(front) + 1))
    assert read_sealed(study.files["found"].losses)[0] == []
    assert len(front) == study.forwarded
    assert [line["chosen"] for line in front].count("1") == 1
    (chosen,) = [line for line in front if line["chosen"] == "1"]
    ks = {layer: entry["k"] for layer, entry in recipe["layers"].items()}
    assert {layer: "dense" if k is None else str(k) for layer, k in ks.items()} == {
        key: chosen[f"k:{key}"] for key in ks
    }
    bits = [int(line["bits"]) for line in front]
    assert bits == sorted(bits)
    weights = {name: study.model.get_submodule(name).weight.numel() for name in ks}
    for line, found in zip(front, bits, strict=True):
        each = {name: None if line[f"k:{name}"] == "dense" else int(line[f"k:{name}"]) for name in ks}
        assert found == sum(layer_bits(weights[name], k) for name, k in each.items())
    best = -1.0
    for line in front:
        assert (line["pareto"] == "1") == (float(line["relative_quality"]) > best)
        best = max(best, float(line["relative_quality"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_killed_search_goes_on_where_it_stopped(study, name):
    recipe = study.run(name)
    total, front = study.forwarded, study.files["found"].front.read_bytes()
    study.files["journal"].unlink()
    study.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        study.run(name)
    study.stop_after = None
    assert study.run(name) == recipe
    assert study.forwarded == total - 2
    assert study.files["found"].front.read_bytes() == front
    # And one that had come to its end measures nothing again.
    assert study.run(name) == recipe
    assert study.forwarded == 0


@pytest.mark.slow
def test_a_search_with_other_settings_inputs_or_code_starts_anew(study):
    study.run("uniform")
    total = study.forwarded
    study.run("uniform", quality_target=0.8)
    assert study.forwarded == total
    paths = {"spec": study.files["files"].spec, "sensitivity": study.files["needs"].sensitivity, "code": None}
    for key, path in paths.items():
        if key == "sensitivity":
            rows, made_from = read_sealed(path)
            rows[0]["kl"] = "0.5"
            write_sealed(path, columns(TASK.PROFILED), rows, made_from)
        elif key == "code":
            study.files[key] = "other code"
        else:
            path.write_text(f"{path.read_text()}\n")
        study.run("uniform", confidence=None)
        assert study.forwarded == total, key


def test_a_target_that_the_images_can_never_confirm_is_refused_before_anything_is_measured(study):
    with pytest.raises(UserError, match="80 search images and 80 held-out ones cannot confirm"):
        study.run("slope", quality_target=0.99, confidence=0.5)
    assert study.forwarded == 0
    assert study.run("slope", quality_target=0.99, confidence=None)["evaluations"] > 0


def test_weights_come_back_after_the_search(study):
    before = {name: value.clone() for name, value in study.model.state_dict().items()}
    study.run("slope")
    assert all(torch.equal(value, before[name]) for name, value in study.model.state_dict().items())


def test_a_measurement_is_the_quality_of_the_shared_network(study, random_images):
    recipe = study.run("uniform", options={"max_bits": 1}, quality_target=1.0, confidence=None)
    assert [entry["k"] for entry in recipe["layers"].values()] == [2, 2, 2]
    sample = random_images(80)
    reference = predict(study.model, sample)
    for name in ("conv", "pointwise", "fc"):
        weight = study.model.get_submodule(name).weight
        codebook = sweep(weight.detach().numpy(), k_max=16).codebook(2)
        nearest = np.abs(weight.detach().numpy()[..., None] - codebook).argmin(-1)
        weight.data = torch.from_numpy(codebook[nearest])
    expected = TASK.score(predict(study.model, sample), reference, sample.labels)
    found = recipe["on_search_images"]
    assert (found["top1"], found["agreement"]) == (expected.figures["top1"], expected.figures["agreement"])
    assert found["kl"] == expected.kl
    # Above the target by chance, and still not accepted: it tells nothing of what float32 tells.
    assert (found["low"] >= 1.0, found["meets_target"]) == (True, False)
