"""The verdict beside what a network would get that gives one output whatever the image."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from wshare.evaluation.intervals import Counts, interval
from wshare.evaluation.verdict import compare, judged
from wshare.tasks import classification


def yes_or_no(yes: int, no: int, probability: float = 0.766) -> np.ndarray:
    """Logits of two classes: images of "yes", the second, then of "no"."""
    log_odds = math.log(probability / (1 - probability))
    return np.concatenate([np.tile([0, log_odds], (yes, 1)), np.tile([log_odds + 3, 0], (no, 1))]).astype(np.float32)


def always_no(reference: np.ndarray) -> np.ndarray:
    """A network that has forgotten "yes", but for a little."""
    outputs = reference.copy()
    outputs[outputs[:, 1] > outputs[:, 0], 1] = -1.6
    return outputs


def test_a_network_that_says_no_to_all_is_not_met_where_nearly_all_are_no():
    """499 of 500: agreement is 0.998, and yet that of a constant."""
    reference = yes_or_no(1, 499)
    quality = compare(classification, always_no(reference), reference, None)
    assert quality["relative_quality"] == 0.998
    assert quality["constant"]["relative_quality"] == 0.998
    assert quality["compressed"]["balanced"] == 0.5
    assert quality["compressed"]["relative_kl"] > 0.3
    assert quality["classes"][0] == {"class": 1, "images": 1, "float32": 1, "compressed": 0}
    found = judged(quality, 0.98)
    assert found["verdict"] == "undecided"
    assert found["needed"] == {"balanced_images": True, "held_out_images": None, "quality_target": None}


@pytest.mark.parametrize(("yes", "no", "verdict"), [(5, 495, "undecided"), (250, 250, "missed")])
def test_as_many_images_of_each_class_tell_a_network_that_works_from_one_that_does_not(yes, no, verdict):
    reference = yes_or_no(yes, no)
    broken = compare(classification, always_no(reference), reference, None)
    assert judged(broken, 0.97)["verdict"] == verdict
    works = compare(classification, reference * 1.01, reference, None)
    assert judged(works, 0.97)["verdict"] == ("met" if verdict == "missed" else "undecided")
    assert judged(works, 0.97)["needed"]["balanced_images"] == (verdict == "undecided")


@pytest.mark.slow
def test_labels_that_are_nearly_all_of_one_class_tell_as_little():
    reference, labels = yes_or_no(5, 495), np.repeat([1, 0], [5, 495])
    quality = compare(classification, always_no(reference), reference, labels)
    assert (quality["measure"], judged(quality, 0.97)["verdict"]) == ("accuracy", "undecided")


@pytest.mark.slow
def test_the_numbers_behind_a_verdict_are_all_there():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(300, 5)).astype(np.float32) * 3
    labels = np.where(rng.random(300) < 0.8, reference.argmax(1), rng.integers(5, size=300))
    outputs = reference + rng.normal(size=(300, 5)).astype(np.float32)
    quality = compare(classification, outputs, reference, labels, 1.5)
    before, after = reference.argmax(1) == labels, outputs.argmax(1) == labels
    assert quality["counts"] == asdict(Counts.of(after, before))
    assert quality["relative_quality"] == after.sum() / before.sum()
    assert quality["relative_quality_ci95"] == list(interval(Counts(**quality["counts"]), False))
    assert quality["interval"]["confidence"] == 0.95
    assert "ratio of paired proportions" in quality["interval"]["method"]
    assert quality["temperature"] == 1.5
    assert len(quality["classes"]) == 5
    assert sum(row["images"] for row in quality["classes"]) == 300
    assert sum(row["compressed"] for row in quality["classes"]) == after.sum()
    without = compare(classification, outputs, reference, None)
    same = int((outputs.argmax(1) == reference.argmax(1)).sum())
    assert without["counts"] == {"kept": same, "gained": 0, "lost": 300 - same, "neither": 0}
    assert without["relative_quality_ci95"] == list(interval(Counts(same, 0, 300 - same, 0), True))
    assert "Clopper-Pearson" in without["interval"]["method"]


def test_an_undecided_verdict_names_images_and_a_target_that_decide():
    quality = {
        "relative_quality_ci95": [0.98123, 1.004],
        "counts": {"kept": 330, "gained": 3, "lost": 6, "neither": 61},
        "constant": {"relative_quality_ci95": [0.01, 0.05]},
    }
    found = judged(quality, 0.985)
    assert found["verdict"] == "undecided"
    assert found["needed"]["held_out_images"] > 400
    # Rounded down: the verdict at this target is "met".
    assert found["needed"]["quality_target"] == 0.9812
    assert judged(quality, 0.9812)["verdict"] == "met"
    assert judged(quality, 0.9812)["needed"]["held_out_images"] is None
