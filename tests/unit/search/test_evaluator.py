"""What is measured on search images, what stops early, and what is accepted.

The network passes two logits on; a third number of an image says whether compression spoils it: it then adds to the
first logit. So each test says which images change, and how.
"""

import numpy as np
import pytest
import torch
from torch import nn

from wshare.data.images import ImageArray
from wshare.errors import UserError
from wshare.evaluation.intervals import Counts, predicted_low
from wshare.packed.compressed import Compressed
from wshare.quantize.codebooks import Shared
from wshare.search.evaluator import Evaluator, Further, Part, check_target
from wshare.tasks import classification

COUNT = 1600
KEY = ("only",)


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


class World:
    """Images of two classes: probability of the second in float32, which are spoilt, and their labels."""

    def __init__(self, second: np.ndarray | float, spoilt: np.ndarray, labels: np.ndarray | None, added: float = 50.0):
        probability = np.broadcast_to(second, COUNT)
        pixels = np.stack([np.zeros(COUNT), np.log(probability / (1 - probability)), spoilt], 1).astype(np.float32)
        self.images = ImageArray(torch.from_numpy(pixels[:, :, None, None]), labels)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)).eval()
        self.model[1].weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        self.reference = pixels[:, :2]
        codebook = np.array([0, 1, added], dtype=np.float32)
        self.compressed = Compressed({"1.weight": Shared(codebook, np.array([[1, 0, 2], [0, 1, 0]], np.int64))}, 8.0)

    def evaluator(self, target: float, confidence: float | None = None, held_out: int = COUNT) -> Evaluator:
        settings = {"quality_target": target, "confidence": confidence}
        return Evaluator(classification, self.model, self.images, self.reference, held_out, settings, 1)

    def measured(self, target: float, max_kl: float | None = None, confidence: float | None = None, **given) -> dict:
        parts = [Part(0, COUNT, self.compressed)]
        return self.evaluator(target, confidence, **given).measure(KEY, lambda: parts, max_kl)


def some(share: float) -> np.ndarray:
    """Which images: a share of them, evenly."""
    return (np.arange(COUNT) * share % 1 < share - 1e-9).astype(np.float32)


ALL_SECOND = np.ones(COUNT, np.int64)


def test_lost_predictions_stop_early_however_small_the_divergence():
    """Close calls: the divergence is nothing, and float32 expects next to no loss."""
    world = World(0.501, some(0.3), ALL_SECOND, added=0.02)
    row = world.measured(0.9, max_kl=1.0)
    assert row["images"] < COUNT
    assert row["relative_quality"] == pytest.approx(0.7, abs=0.05)
    assert row["kl"] < 1e-3
    assert row["expected"] > 0.95


@pytest.mark.parametrize("share", [0.09, 0.1, 0.11])
def test_a_quality_near_the_target_is_measured_on_all_images(share):
    """On either side: what is no further off than chance reaches is not ruled out."""
    row = World(0.501, some(share), ALL_SECOND, added=0.02).measured(0.9, max_kl=1.0)
    assert row["images"] == COUNT
    assert row["relative_quality"] == pytest.approx(1 - share, abs=0.005)


def test_what_float32_expects_stops_early_though_labels_are_kept():
    """Sure predictions turn into others that happen to be right."""
    spoilt = some(0.3)
    world = World(0.95, spoilt, np.where(spoilt > 0, 0, 1))
    row = world.measured(0.9, max_kl=1e9)
    assert row["images"] < COUNT
    assert row["relative_quality"] > 1
    # At the temperature of labels that are right on 70 %.
    assert row["expected"] == pytest.approx(1 - 0.3 * (0.4 / 0.7), abs=0.03)


def test_the_lower_end_is_that_of_the_confidence_and_the_held_out_images():
    world = World(0.501, some(0.02), ALL_SECOND, added=0.02)
    counts = Counts(COUNT - 32, 0, 32, 0)
    for confidence, held_out in ((0.5, COUNT), (0.9, COUNT), (0.9, 400)):
        row = world.measured(0.9, confidence=confidence, held_out=held_out)
        assert row["low"] == predicted_low(counts, confidence, held_out) < row["relative_quality"] == 0.98
    assert world.measured(0.9)["low"] == 0.98


ROW = {"low": 0.995, "expected_low": 0.995, "kl": 0.001}


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [({}, True), ({"low": 0.985}, False), ({"expected_low": 0.985}, False), ({"kl": 0.5}, False)],
)
def test_counts_what_float32_expects_and_divergence_must_all_confirm(changes, accepted):
    world = World(some(0.5) * 0.9 + 0.05, some(0.1), None)
    assert world.evaluator(0.99).accepts(ROW | changes) is accepted


def test_expected_quality_goes_by_the_temperature_that_the_labels_tell():
    """Float32 says 0.7 and is right on 90 %: it loses more than it says where it changes."""
    labels = (np.arange(COUNT) % 10 > 0).astype(np.int64)
    world = World(0.7, some(0.1), labels)
    found, told = world.evaluator(0.9), world.measured(0.9)
    assert found.temperature == pytest.approx(logit(0.7) / logit(0.9), rel=0.01)
    assert told["expected"] == pytest.approx(0.9 + 0.1 * 0.1 / 0.9, abs=1e-3)
    assert World(0.7, some(0.1), None).measured(0.9)["expected"] == pytest.approx(0.9 + 0.1 * 0.3 / 0.7, abs=1e-3)


@pytest.mark.parametrize(("share", "accepted"), [(0.01, False), (0.5, True)])
def test_a_network_that_always_says_the_same_is_accepted_only_by_images_that_cannot_be_its_own(share, accepted):
    """One image in a hundred is of the second class: saying "first" to all agrees with float32 on 99 %.

    With halves of both classes the same number of spoilt images, one in a hundred, tells little of what is lost.
    """
    second = some(share)
    spoilt = second if share < 0.1 else some(0.01) * second
    world = World(np.where(second > 0, 0.77, 0.01), spoilt, None, added=3.0)
    row = world.measured(0.98)
    assert row["agreement"] >= 0.98
    assert min(row["low"], row["expected_low"]) >= 0.98
    assert world.evaluator(0.98).accepts(row) is accepted


def test_images_that_cannot_confirm_are_refused_before_anything_is_measured():
    world = World(np.where(some(0.5) > 0, 0.9, 0.05), some(0.1), None)
    settings = {"quality_target": 0.99, "confidence": 0.9, "options": {}}
    check_target(classification, world.reference, None, COUNT, settings)
    with pytest.raises(UserError, match=r"same for all \d+ search images .* check its weights and preprocessing"):
        check_target(classification, np.repeat(world.reference[:1], COUNT, 0), None, COUNT, settings)
    with pytest.raises(UserError, match="1,600 search images and 100 held-out ones cannot confirm"):
        check_target(classification, world.reference, None, 100, settings)
    for free in ({"confidence": None}, {"options": {"compression_rate": 8}}):
        check_target(classification, world.reference, None, 100, settings | free)


class Beside(World):
    """A world with further images: each tenth is spoilt, and search images lie around them."""

    def __init__(self, second: float, spoilt: np.ndarray, labels: np.ndarray | None, others: "World"):
        super().__init__(second, spoilt, labels)
        self.further = Further(others.images, others.reference, border=40, search_border=600)

    def evaluator(self, target: float, confidence: float | None = None, held_out: int = COUNT) -> Evaluator:
        settings = {"quality_target": target, "confidence": confidence}
        given = classification, self.model, self.images, self.reference, held_out, settings, 1
        return Evaluator(*given, further=self.further)

    def measured(self, target: float, max_kl: float | None = None, confidence: float | None = None, **given) -> dict:
        parts = [Part(0, 640, self.compressed), Part(640, 2 * COUNT, self.compressed)]
        return self.evaluator(target, confidence, **given).measure(KEY, lambda: parts, max_kl)


def test_further_images_count_for_divergence_alone():
    """Labels are wrong from 800 on, so that one of another image would tell."""
    labels = (np.arange(COUNT) < 800).astype(np.int64)
    alone = World(0.7, some(0.1), labels)
    others = World(0.6, some(0.5), None)
    row = Beside(0.7, some(0.1), labels, others).measured(0.5)
    plain, further = alone.measured(0.5), others.measured(0.5)
    assert row["images"] == 2 * COUNT
    for name in ("relative_quality", "low", "expected", "expected_low", "kl", "kl_high", "top1", "agreement"):
        assert row[name] == pytest.approx(plain[name], rel=1e-9), name
    assert row["pooled_kl"] == pytest.approx((plain["kl"] + further["kl"]) / 2, rel=1e-6)
    assert plain["pooled_kl"] == plain["kl"]
    assert plain["pooled_kl_high"] == plain["kl_high"]
    # Twice as many images, of another spread.
    assert row["pooled_kl_high"] - row["pooled_kl"] < further["kl_high"] - further["kl"]


def test_a_divergence_of_further_images_stops_early():
    others = World(0.6, some(0.9), None)
    row = Beside(0.501, np.zeros(COUNT), ALL_SECOND, others).measured(0.9, max_kl=0.01)
    assert row["images"] < 2 * COUNT
    assert row["kl"] < 1e-6 < 0.01 < row["pooled_kl"]


def test_outputs_of_other_shapes_are_refused():
    world = World(0.7, some(0.1), None)
    further = Further(world.images, np.zeros((COUNT, 3), np.float32), 800, 800)
    settings = {"quality_target": 0.9, "confidence": None}
    with pytest.raises(
        UserError, match=r"calibration: the network's outputs are \[3\] for these images, and \[2\] for"
    ):
        Evaluator(classification, world.model, world.images, world.reference, 9, settings, 1, further=further)


def shrunk(first: float, second: float) -> tuple[World, list[Part]]:
    """A world whose outputs shared values make smaller: by one factor in the first half, by another in the second."""
    world = World(np.linspace(0.05, 0.95, COUNT)[np.random.default_rng(0).permutation(COUNT)], np.zeros(COUNT), None)
    networks = [
        Compressed(
            {"1.weight": Shared(np.array([0, factor], np.float32), np.array([[1, 0, 0], [0, 1, 0]], np.int64))}, 8.0
        )
        for factor in (first, second)
    ]
    return world, [Part(0, 800, networks[0]), Part(800, COUNT, networks[1])]


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.9), (0.92, 0.88)])
def test_outputs_are_multiplied_by_what_suits_those_of_the_other_half(first, second):
    world, parts = shrunk(first, second)
    plain, scaled = (world.evaluator(0.9).measure(KEY, lambda: parts, scaled=switch) for switch in (False, True))
    assert plain["output_scale"] == 1
    assert scaled["output_scale"] == pytest.approx(1 / np.sqrt(first * second), rel=2e-3)
    by_hand = [
        factor * world.reference[part]
        for factor, part in ((first / second, slice(800)), (second / first, slice(800, None)))
    ]
    expected = classification.score(np.concatenate(by_hand), world.reference, None)
    assert scaled["kl"] == pytest.approx(expected.kl, rel=0.3, abs=1e-6)
    assert scaled["kl"] < plain["kl"] / 4


def test_a_scale_that_the_other_half_contradicts_is_none():
    world, parts = shrunk(0.9, 1.12)
    row = world.evaluator(0.9).measure(KEY, lambda: parts, scaled=True)
    plain = world.evaluator(0.9).measure(KEY, lambda: parts)
    assert row == plain
    assert row["output_scale"] == 1
