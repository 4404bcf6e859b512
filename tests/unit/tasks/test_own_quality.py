"""A quality of the user's own: a function of outputs and labels."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import wshare
from wshare.errors import UserError
from wshare.evaluation.baseline import check_accuracy
from wshare.evaluation.intervals import Counts, kept
from wshare.evaluation.means import OF_NUMBERS, Means
from wshare.evaluation.verdict import compare
from wshare.report.quality import in_a_line
from wshare.tasks import classification
from wshare.tasks.own_quality import name_of
from wshare.tasks.table import is_count, task_of
from wshare.tasks.task import fitted, own_figures

RNG = np.random.default_rng(0)
LABELS = RNG.integers(2, size=300)
REFERENCE = np.stack([np.zeros(300), 3 * (2 * LABELS - 1) + 3 * RNG.normal(size=300)], 1)
OUTPUTS = REFERENCE + 0.3 * RNG.normal(size=(300, 2))


def f1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall."""
    yes = outputs.argmax(1) == 1
    return 2 * (yes & (labels == 1)).sum() / (yes.sum() + (labels == 1).sum())


def likelihood(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of each image's label."""
    return 1 / (1 + np.exp((outputs[:, 0] - outputs[:, 1]) * np.where(labels == 1, 1, -1)))


def right(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return outputs.argmax(1) == labels


def own(function):
    return task_of({"task": "classification", "quality": name_of(function)}, function)


def test_a_number_is_held_against_that_of_float32_with_a_jackknife():
    task = own(f1)
    before, after = (task.score(array, REFERENCE, LABELS) for array in (REFERENCE, OUTPUTS))
    assert after.quality == after.figures["own_quality"] == pytest.approx(f1(OUTPUTS, LABELS))
    assert after.kl == classification.score(OUTPUTS, REFERENCE, None).kl
    found = kept(after, before)
    assert found.method == OF_NUMBERS
    assert found.share == pytest.approx(f1(OUTPUTS, LABELS) / f1(REFERENCE, LABELS))
    assert found.low < found.share < found.high
    assert found == kept(after, before)
    # A part is worked out anew.
    places = np.arange(40, 90)
    assert before.part(places).quality == pytest.approx(f1(REFERENCE[places], LABELS[places]))
    assert before.part(places).number(np.arange(10)) == pytest.approx(f1(REFERENCE[40:50], LABELS[40:50]))


def test_a_number_that_is_a_mean_has_the_interval_of_means():
    scores = [likelihood(array, LABELS) for array in (OUTPUTS, REFERENCE)]
    numbers = Means.of_numbers(*(lambda places, values=values: values[places].mean() for values in scores), 300)
    means = Means.of(*scores)
    assert numbers.deviation == pytest.approx(means.deviation, rel=0.01)
    assert (numbers.low, numbers.high) == pytest.approx((means.low, means.high), abs=0.02 * (means.high - means.low))


def test_many_images_are_left_out_in_parts():
    rng, calls = np.random.default_rng(0), []
    scores = rng.normal(1, 0.1, 3000)

    def number(places: np.ndarray) -> float:
        calls.append(len(places))
        return float(scores[places].mean())

    found = Means.of_numbers(number, lambda places: 1.0, 3000)
    assert len(calls) == 401
    assert found.deviation == pytest.approx(scores.std() / np.sqrt(3000), rel=0.1)


def test_parts_that_give_no_number_are_told():
    def number(places: np.ndarray) -> float:
        return 1.0 if 3 in places else float("nan")

    with pytest.raises(UserError, match=r"^quality: gives nan after and nan before compression for 9 of 10 images"):
        Means.of_numbers(number, number, 10)
    assert Means.of_numbers(lambda _: 1.0, lambda _: 0.0, 10).share == 0


@pytest.mark.parametrize(("function", "kind"), [(likelihood, Means), (right, Counts)])
def test_image_wise_scores_are_means_or_counts(function, kind):
    task = own(function)
    before, after = (task.score(array, REFERENCE, LABELS) for array in (REFERENCE, OUTPUTS))
    np.testing.assert_array_equal(after.scores, function(OUTPUTS, LABELS))
    assert after.number is None
    assert isinstance(kept(after, before), kind)


def test_a_verdict_speaks_its_name():
    quality = compare(own(f1), OUTPUTS, REFERENCE, LABELS)
    assert (quality["measure"], quality["quality"]) == ("f1", f"python:{__name__}:f1")
    assert quality["float32"]["own_quality"] == pytest.approx(f1(REFERENCE, LABELS))
    assert quality["counts"] is None
    line = in_a_line(task_of({"task": "classification"} | quality), quality | {"quality_target": 0.9})
    assert line.startswith(f"f1 {f1(REFERENCE, LABELS):.4g} -> {f1(OUTPUTS, LABELS):.4g}: ")
    # A constant yes has a harmonic mean as well.
    assert quality["constant"]["relative_quality"] == pytest.approx(
        f1(np.tile(REFERENCE.mean(0), (300, 1)), LABELS) / f1(REFERENCE, LABELS)
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs, labels: float("nan"), r"^quality: <lambda> gives NaN or an infinite value"),
        (
            lambda outputs, labels: np.ones(7),
            r"^quality: <lambda> gives float64 \[7\] for 300 images; give one number,",
        ),
        (lambda outputs, labels: "good", r"^quality: <lambda> gives <U4 \[\] for 300 images"),
    ],
)
def test_what_is_no_quality_is_one_line(function, message):
    with pytest.raises(UserError, match=message):
        own(function).score(OUTPUTS, REFERENCE, LABELS)


def test_it_needs_labels_and_a_float32_network_that_is_worth_something():
    with pytest.raises(UserError, match=r"^labels: f1 needs labels; give labels, or leave out the quality of your"):
        own(f1).check_labels(None, {}, "labels")
    with pytest.raises(UserError, match=r"^search images: float32 has likelihood 0\.\d+, where one output for all"):
        check_accuracy(own(likelihood), -REFERENCE, LABELS, None, "search images")
    check_accuracy(own(likelihood), REFERENCE, LABELS, None, "search images")


def test_of_several_outputs_it_gets_each_by_its_path():
    def overlap(outputs, labels):
        assert outputs["a"].shape == (20, 2, 3)
        return -outputs["b"][:, 0] + 9

    description = {"task": "regression", "quality": name_of(overlap)}
    description["structure"] = [{"path": "a", "shape": [2, 3]}, {"path": "b", "shape": [1]}]
    joined = np.random.default_rng(0).normal(size=(20, 7))
    task = fitted(task_of(description, overlap), joined, np.zeros(20))
    np.testing.assert_allclose(task.score(joined, joined, np.zeros(20)).scores, 9 - joined[:, 6])
    assert task.base.scales is not None
    assert replace(task, given=None).label.endswith("overlap")


def test_a_function_is_imported_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def half(outputs, labels):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    task = task_of({"task": "classification", "quality": "python:mine:half"})
    # Reports need its name alone.
    assert own_figures(task)[0].label == "half"
    assert "mine" not in sys.modules
    assert task.score(OUTPUTS, REFERENCE, LABELS).quality == 0.5
    with pytest.raises(UserError, match=r"^quality: 'mine:haf': no function 'haf' there\. Did you mean 'half'"):
        task_of({"task": "classification", "quality": "python:mine:haf"}).score(OUTPUTS, REFERENCE, LABELS)
    monkeypatch.delitem(sys.modules, "mine")


def test_of_a_function_no_chance_is_told_beforehand():
    assert is_count({"task": None, "quality": None})
    assert not is_count({"task": "classification", "quality": "python:a:b"})


@pytest.mark.slow
def test_a_network_is_compressed_by_it(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    images = torch.randn(240, 1, 6, 6)
    labels = model(images).argmax(1)
    labels[:20] = 1 - labels[:20]
    options = {"evaluations": 3, "probe_images": 0}
    result = wshare.compress(
        model, images, labels, quality=0.8, confidence=None, quality_function=f1, options=options, seed=1
    )
    assert result.metrics["measure"] == "f1"
    assert result.metrics["relative_quality"] == pytest.approx(
        result.metrics["compressed"]["own_quality"] / result.metrics["float32"]["own_quality"]
    )
    assert "f1 0." in str(result)
    assert {"own_quality", "top1"} <= result.front[0].keys()
    json.dumps(result.metrics, allow_nan=False)
    with pytest.raises(UserError, match="labels: f1 needs labels"):
        wshare.compress(model, images, quality=0.8, confidence=None, quality_function=f1)
