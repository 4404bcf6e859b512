"""A task of another kind than classification, added as a user would: a module and a row of the table."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wshare.artifacts.sensitivity import columns
from wshare.calibration.importance import fisher_diagonal
from wshare.calibration.sensitivity import profile, row
from wshare.errors import UserError
from wshare.evaluation.predict import predict
from wshare.evaluation.verdict import compare, describe
from wshare.files.sealed import read_json
from wshare.models.description import Fetched
from wshare.models.zoo import NETWORKS
from wshare.stages.summarise import summarise
from wshare.tasks.description import described
from wshare.tasks.table import TASKS, Row, task

from ..calibration.test_sensitivity import built, clusters_of
from ..report.made_up import MODEL, report_files, write_reports, write_results
from . import vectors

NAME = "vectors"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, NAME, Row(NAME, vectors.__name__))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).eval()


def test_the_table_gives_its_module():
    assert task(NAME) is vectors
    with pytest.raises(UserError, match=r"^task: 'vectorz': no such task\. Did you mean 'vectors'\?$"):
        task("vectorz")


def test_a_network_is_described_by_it():
    fetched = Fetched(network(), {"name": "net", "input": [1, 4, 4], "categories": None})
    found = described(fetched, {"task": NAME}).spec
    assert found == {"name": "net", "input": [1, 4, 4], "categories": None, "task": NAME, "dimensions": 4}
    maps = Fetched(network()[:1], fetched.spec)
    with pytest.raises(UserError, match=r"^net: gives \[2, 3, 2, 2\] for 2 images, not a vector for each$"):
        described(maps, {"task": NAME})
    # Classification is what is meant where nothing is said.
    assert described(fetched, {}).spec["task"] == "classification"


def test_fisher_information_is_of_labels_that_it_draws():
    model, images = network(), torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = fisher_diagonal(vectors, model, [images], ["3"], seed=5)["3"]
    generator, expected = torch.Generator().manual_seed(5), 0.0
    hidden = model[:3](images).detach()
    for inputs in hidden:
        # The gradient of the log-likelihood with respect to the output is what was added to it.
        noise = torch.randn(1, 4, generator=generator)[0]
        expected = expected + (noise[:, None] * inputs).double().square() / len(images)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


def test_it_gives_a_verdict():
    reference = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    outputs = reference + np.float32(0.1)
    outputs[:20] += 1
    quality = compare(vectors, outputs, reference, None)
    assert quality["measure"] == "agreement"
    assert quality["float32"] == {"near": 1.0, "images": 80}
    assert quality["compressed"]["near"] == quality["relative_quality"] == 0.75
    assert set(quality["compressed"]) == {"near", "distance", "images", "kl", "relative_kl"}
    assert quality["compressed"]["kl"] == pytest.approx(np.square(outputs - reference).sum(1).mean() / 2, rel=1e-5)
    sizes = {"bytes": {"float32": 8, "packed": 2}, "weights": 2, "analytic_bits": 16, "parameters": 2}
    sizes |= {"format": "fixed", "batch_norm": "float32", "folded_batch_norms": 0}
    recipe = {"task": NAME, "evaluations": 1, "images_forwarded": {"search": 80}, "settings": {"options": {}}}
    recipe |= {"on_search_images": {"meets_target": False}}
    found = describe(quality, 0.99, sizes, recipe, 0, {})
    assert (found["task"], found["verdict"]) == (NAME, "missed")


def test_a_layer_is_profiled_by_its_figures(random_images):
    model, images = built(NETWORKS["tiny"]), random_images(20)
    reference = predict(model, images)
    probes = profile(vectors, model, clusters_of(model, ["fc"]), images, reference)
    original = vectors.score(reference, reference, None)
    rows = [row(vectors, probe, original) for probe in probes]
    names = ["layer", "k", "inertia", "weighted_inertia", "near", "relative_quality", "kl", "distance", "images"]
    assert columns(vectors.PROFILED) == names
    assert [list(found) for found in rows] == [names, names]
    assert rows[0]["kl"] > rows[1]["kl"] > 0
    assert all(found["relative_quality"] == found["near"] for found in rows)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path, ("rate_distortion", "slope"), labels=False, task_name=NAME)


@pytest.mark.slow
def test_reports_speak_its_words(results, tmp_path):
    write_reports(tmp_path)
    page = (results / "report" / "index.html").read_text(encoding="utf-8")
    page = page[page.index("<main") : page.index("</main>")]
    study = (tmp_path / "results" / "report" / "index.html").read_text(encoding="utf-8")
    study = study[study.index("<main") : study.index("</main>")]
    for text in (page, study):
        assert "top-1" not in text
        assert "accuracy" not in text.lower()
    assert "of the float32 network&#x27;s vectors" in page
    far = sum(float(line.split(",")[1]) >= vectors.TOLERANCE for line in moved(results / "search" / "slope"))
    assert f"{far} vectors moved far." in page
    assert "moved by " in page
    assert "packed near vectors" in study


def moved(folder: Path) -> list[str]:
    """Lines of a search's predictions.csv, without head and seal."""
    return (folder / "predictions.csv").read_text().splitlines()[1:-1]


def test_the_summary_speaks_its_words(results, tmp_path):
    write_results(tmp_path / "other", ("slope",))
    roots = (results, tmp_path / "other" / "results" / MODEL)
    given = [report_files(root) for root in roots]
    files = [[path for one in given for path in getattr(one, name)] for name in ("metrics", "timings", "recipes")]
    baselines = [one.baseline for one in given for _ in one.metrics]
    summarise(*files, baselines, tmp_path / "summary.txt", tmp_path / "summary.csv")
    text = (tmp_path / "summary.txt").read_text()
    metrics = read_json(results / "search" / "slope" / "metrics.json")
    assert f"agreement with float32 {metrics['compressed']['near']:.2%} on 60 held-out images (no labels)" in text
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Each network fills the columns of its own task.
    assert [bool(found["packed_near"]) for found in rows] == [True, True, False]
    assert [bool(found["packed_top1"]) for found in rows] == [False, False, True]
