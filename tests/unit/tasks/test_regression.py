"""Regression: errors by the scale of each output, and what follows from them."""

import numpy as np
import pytest
import torch
from torch import nn

import wshare
from wshare.data.images import ImageArray
from wshare.errors import UserError
from wshare.evaluation.baseline import check_accuracy
from wshare.evaluation.predict import predict
from wshare.evaluation.verdict import compare, judged
from wshare.models.layers import replaced
from wshare.packed.compressed import Compressed
from wshare.search.evaluator import Evaluator
from wshare.tasks import changed
from wshare.tasks.regression import LOST, TASK
from wshare.tasks.table import task_of
from wshare.tasks.task import AGREEMENT, fitted

from ..report.made_up import write_reports, write_results

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def maps(count: int = 60) -> np.ndarray:
    """Two channels of other units, [N, 2, 3, 5]."""
    return (RNG.normal(size=(count, 2, 3, 5)) * np.array([1, 1000])[:, None, None]).astype(np.float32)


def test_an_image_is_off_by_the_mean_of_squared_shares_of_the_spread():
    reference = RNG.normal(size=(50, 3)).astype(np.float32) * [1, 10, 100]
    outputs = reference + RNG.normal(size=(50, 3)) * [0.1, 1, 10]
    errors = (np.square(outputs - reference) / reference.var(0)).mean(1)
    found = TASK.score(outputs, reference, None)
    np.testing.assert_allclose(found.scores, 1 - errors, rtol=1e-6)
    assert found.kl == pytest.approx(errors.mean() / 2)
    assert found.quality == found.figures["variance_kept"] == pytest.approx(1 - errors.mean())
    assert found.expected == pytest.approx(found.quality)
    assert found.kl_error == pytest.approx(errors.std() / 2 / np.sqrt(50))
    assert found.figures["error"] == pytest.approx(np.sqrt(errors.mean()))
    assert found.figures["worst"] == pytest.approx(1 - errors.max())
    assert found.scores.dtype != bool


def test_a_map_is_worth_no_more_than_a_vector_and_its_channels_have_scales_of_their_own():
    reference = maps()
    tenth = 0.1 * reference.std((0, 2, 3), keepdims=True)
    assert TASK.score(reference + tenth, reference, None).kl == pytest.approx(0.005, rel=0.05)
    # A channel of small numbers counts as much as one of large ones.
    first, second = (reference + tenth * np.eye(2)[channel][:, None, None] for channel in (0, 1))
    assert TASK.score(first, reference, None).kl == pytest.approx(TASK.score(second, reference, None).kl, rel=0.1)


@pytest.mark.parametrize("shape", [(4, 60), (60, 4)])
def test_of_two_axes_the_shorter_one_is_that_of_the_channels(shape):
    axis = shape.index(4)
    units = np.array([1, 10, 100, 1000.0]).reshape([4 if place == axis else 1 for place in range(2)])
    reference = RNG.normal(size=(200, *shape)) * units
    assert TASK.score(reference + 0.1 * units, reference, None).kl == pytest.approx(0.005, rel=0.05)


def test_the_mean_output_explains_nothing_and_loses_half_a_nat():
    reference = maps()
    found = TASK.constant(reference, None)
    assert (found.kl, found.quality) == pytest.approx((0.5, 0))
    labels = reference + maps() / 2
    assert TASK.constant(reference, labels).quality == pytest.approx(0)
    assert TASK.constant(reference, labels).kl == pytest.approx(0.5)


def test_quality_is_held_against_labels():
    reference = RNG.normal(size=(400, 2))
    labels = reference + RNG.normal(size=(400, 2)) / 2
    outputs = reference + RNG.normal(size=(400, 2)) / 10
    before, after = (TASK.score(array, reference, labels) for array in (reference, outputs))
    assert before.quality == pytest.approx(1 - (np.square(reference - labels) / labels.var(0)).mean())
    # What float32 expects without labels is what labels tell.
    assert after.expected == pytest.approx(after.quality / before.quality, abs=0.02)
    assert TASK.measure(labels) == "explained variance"
    assert TASK.measure(None) == AGREEMENT


def test_parts_are_scored_by_the_scales_of_all():
    reference = RNG.normal(size=(40, 3))
    outputs, known = reference + 0.1, fitted(TASK, reference)
    whole, part = known.score(outputs, reference, None), known.score(outputs[:1], reference[:1], None)
    np.testing.assert_array_equal(part.scores, whole.scores[:1])


def test_several_outputs_count_alike_however_many_numbers_they_have():
    several = task_of({"task": "regression", "structure": [{"shape": [2]}, {"shape": [3, 4, 4]}, {"shape": [1]}]})
    reference = RNG.normal(size=(2000, 51))
    # The last output is the same for every image, and counts for nothing.
    reference[:, 50] = 7
    tenth = np.zeros(51)
    tenth[:2] = 0.1
    first = several.score(reference + tenth, reference, None)
    second = several.score(reference + np.roll((np.arange(51) < 48) * 0.1, 2), reference, None)
    assert first.kl == pytest.approx(second.kl, rel=0.1) == pytest.approx(0.0025, rel=0.1)
    assert several.score(reference + np.eye(51)[50], reference, None).kl == 0


def test_numbers_that_hardly_vary_or_are_lost_stay_finite():
    reference = RNG.normal(size=(50, 3))
    reference[:, 0] = 3
    assert TASK.score(reference + np.array([1e-4, 0, 0]), reference, None).kl < 0.001
    outputs = reference.copy()
    outputs[0, 1], outputs[1, 1] = np.nan, np.inf
    assert TASK.score(outputs, reference, None).kl == pytest.approx(LOST / 50)
    with pytest.raises(UserError, match="gives the same for every image"):
        TASK.score(np.ones((9, 2)), np.ones((9, 2)), None)


@pytest.mark.slow
def test_the_divergence_is_that_of_the_gaussian_that_numbers_are_drawn_from():
    """Its Fisher information, by many draws, is what the divergence of a small step says."""
    reference = RNG.normal(size=(50, 4)).astype(np.float32) * [1, 2, 3, 4]
    known, generator = fitted(TASK, reference), torch.Generator().manual_seed(0)
    output = torch.tensor(reference[:1]).requires_grad_()
    squares = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(3000):
        (gradient,) = torch.autograd.grad(known.log_likelihood(output, generator), output)
        squares += gradient.double() ** 2 / 3000
    step = 0.01 * reference.std(0)
    divergence = known.score(reference + step, reference, None).kl
    assert float((squares.numpy() * step**2).sum() / 2) == pytest.approx(divergence, rel=0.05)


def test_labels_are_as_many_numbers_as_the_network_gives():
    description = TASK.describe(np.zeros((2, 3), np.float32), {}, "net")
    assert description == {"shape": [3]}
    TASK.check_labels(np.zeros((9, 3)), description, "labels")
    with pytest.raises(UserError, match=r"^labels: \[2\] for each image, but the network gives \[3\]; correct"):
        TASK.check_labels(np.zeros((9, 2)), description, "labels")
    with pytest.raises(UserError, match="no finite number"):
        TASK.check_labels(np.full((9, 3), np.nan), description, "labels")
    with pytest.raises(UserError, match=r"^net: gives \[3\] for 2 images"):
        TASK.describe(np.zeros(3), {}, "net")


def test_a_network_that_explains_nothing_of_the_labels_stops_at_once():
    outputs, labels = RNG.normal(size=(60, 2)), RNG.normal(size=(60, 2))
    with pytest.raises(UserError, match=r"^held-out images: float32 has share of variance explained -.*has 0\.00%"):
        check_accuracy(TASK, outputs, labels, None, "held-out images")
    check_accuracy(TASK, outputs, outputs + labels / 4, None, "held-out images")


def test_predictions_tell_how_far_each_image_changed_and_the_report_those_that_changed_most():
    reference = RNG.normal(size=(30, 2))
    outputs = reference + np.linspace(0, 0.3, 30)[:, None]
    columns, rows = TASK.predictions(outputs, reference, None, [f"{i}.png" for i in range(30)])
    assert columns == ["image", "changed", "float32", "compressed"]
    assert rows[0] == {"image": "0.png", "changed": 0.0, "float32": "", "compressed": ""}
    told, shown = TASK.changes([{key: str(value) for key, value in row.items()} for row in rows], {}, None)
    assert [place for place, _ in shown] == list(range(29, 29 - changed.SHOWN, -1))
    assert f"{rows[29]['changed']:.2%} on the one that changed most" in told
    _, labelled = TASK.predictions(outputs, reference, reference, [""] * 30)
    assert labelled[5]["float32"] == 0
    assert labelled[5]["compressed"] == labelled[5]["changed"]
    assert TASK.changes([{"changed": "0.0"}] * 3, {}, None) == ("No output of 3 held-out images changed.", [])


@pytest.mark.parametrize(("images", "verdict"), [(40, "undecided"), (400, "met")])
def test_too_few_images_decide_nothing(images, verdict):
    reference = np.random.default_rng(1).normal(size=(images, 3))
    noise = np.random.default_rng(2).normal(size=(images, 3))
    quality = compare(TASK, reference + 0.01 * noise, reference, None)
    assert quality["counts"] is None
    assert quality["deviation"] > 0
    found = judged(quality, 0.99)
    assert found["verdict"] == verdict
    assert judged(compare(TASK, reference + 0.5 * noise, reference, None), 0.99)["verdict"] == (
        "missed" if verdict == "met" else "undecided"
    )


def test_a_network_is_compressed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    images = torch.randn(160, 1, 6, 6)
    result = wshare.compress(model, images, quality=0.9, task="regression", options={"evaluations": 4})
    assert (result.metrics["task"], result.metrics["measure"]) == ("regression", AGREEMENT)
    assert "the share rests on 80 held-out images" in str(result)
    assert result.metrics["compressed"]["variance_kept"] == pytest.approx(result.metrics["relative_quality"])
    after, before = (network(images).detach().numpy() for network in (result.model, model))
    assert np.square(after - before).sum() / np.square(before - before.mean(0)).sum() < 0.15
    with pytest.raises(UserError, match=r"^40 search images and 40 held-out ones decide nothing: .* takes 50 of each"):
        wshare.compress(model, images[:80], quality=0.9, task="regression")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("regression", ("of the float32 network&#x27;s outputs", "of their spread on the median", "of the spread")),
        ("multilabel", ("of the float32 network&#x27;s labels", "The labels changed for")),
    ],
)
def test_reports_speak_its_words(tmp_path, name, words):
    results = write_results(tmp_path, ("rate_distortion", "slope"), labels=False, task_name=name)
    write_reports(tmp_path)
    page = (results / "report" / "index.html").read_text(encoding="utf-8")
    page = page[page.index("<main") : page.index("</main>")]
    assert "top-1" not in page
    assert "share rests on 60 held-out images" in page
    for text in words:
        assert text in page


def test_a_search_measures_parts_of_the_images_by_the_scales_of_all():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), ImageArray(torch.randn(40, 1, 4, 4), None)
    reference = predict(model, images)
    settings = {"quality_target": 0.9, "confidence": None}
    evaluator = Evaluator(TASK, model, images, reference, 40, settings, 1)
    weight = model[1].weight.detach().numpy() * np.float32(1.1)
    probed = evaluator.probe(("probe",), lambda: Compressed({}, 1, changed={"1.weight": weight}), 2)
    with replaced(model, {"1.weight": weight}):
        outputs = predict(model, images)
    assert probed == pytest.approx(fitted(TASK, reference).score(outputs[:2], reference[:2], None).kl, rel=1e-4)
