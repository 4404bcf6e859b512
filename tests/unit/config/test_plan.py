"""What a dry run says of verdicts before anything is measured."""

import re
from pathlib import Path

import pytest

from tests.unit.config.base import edited, problems
from wshare.config.plan import plan, verdict_chances
from wshare.config.validation import complete, complete_search
from wshare.evaluation.chances import ADVISED


def told(search: int, held_out: int, **settings: object) -> str:
    return verdict_chances(complete_search({"method": "rate_distortion", **settings}), search, held_out)


def test_the_confidence_that_is_advised_is_the_default():
    assert complete_search({"method": "rate_distortion"})["confidence"] == ADVISED


@pytest.mark.parametrize(
    ("target", "held_out", "least"), [(0.99, 367, "368 at least"), (0.98, 100, "183 at least"), (1.0, 10**6, "below 1")]
)
def test_a_target_that_no_network_meets_on_so_few_images_is_told_with_the_number_it_takes(target, held_out, least):
    line = told(10**4, held_out, quality_target=target, confidence=None)
    assert f"quality target {target:g} on {held_out:,} held-out images is never" in line
    assert least in line


def test_enough_images_are_not_said_to_be_too_few():
    assert "never" not in told(1000, 368, confidence=None)


def test_without_a_confidence_the_chance_of_met_and_the_cost_of_one_are_told():
    few, many = (told(count, count, confidence=None) for count in (2000, 50_000))
    chance, cost = map(int, re.search(r"in about (\d+)% of runs .* costs about (\d+)% of the rate", few).groups())
    assert 10 < chance < 35
    assert 20 < cost < 50
    assert "in about 100% of runs" in many
    assert "costs about 0% of the rate" in many


def test_a_confidence_is_the_chance_and_its_cost_is_told():
    line = told(2000, 2000, confidence=0.95)
    assert "in about 95% of runs; this confidence costs about" in line


def test_a_given_size_has_no_chance():
    assert "the size is given" in told(2000, 2000, options={"compression_rate": 8})


def test_the_plan_has_a_line_for_each_target_and_confidence():
    config = complete(
        edited(("searches.v", {"method": "slope", "quality_target": 0.98}), ("searches.w", {"method": "milp"}))
    )
    text = plan(config, Path("nowhere"), [])
    of_folder = text.partition("\n  f on folder")[2].partition("\n  jobs")[0]
    assert of_folder.count("quality target 0.99 on 2,000 held-out images") == 1
    assert of_folder.count("quality target 0.98 on 2,000 held-out images") == 1
    assert "40% of the images as search images" in text
    # Of shares of a total that nobody knows yet nothing can be said.
    assert "quality target" not in text.partition("m on d")[2].partition("f on folder")[0]


def test_the_plan_tells_splits_of_all_images():
    own = {"held_out": {"path": "there"}, "split": {"search": 0.5, "held_out": "all"}}
    text = plan(complete(edited(("datasets.folder", own | {"source": "imagefolder"}))), Path("nowhere"), [])
    assert "f on folder: 50% of the images as search images; all images as held-out images; searches" in text


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ([("datasets.folder.split.held_out", 60)], "about 6,134 and 369"),
        ([("searches.s.quality_target", 1.0)], "no number of images can"),
    ],
)
def test_images_that_cannot_confirm_are_refused_when_the_configuration_is_read(edits, told):
    lines = [line for line in problems(edited(*edits)) if line.startswith("searches.s: datasets.folder: ")]
    assert len(lines) == 1
    assert told in lines[0]
    complete(edited(*edits, *((f"searches.{name}.confidence", None) for name in "stur")))


def test_of_quality_that_is_no_count_no_chance_is_told():
    config = complete(edited(("models.f.task", "regression")))
    of_folder = plan(config, Path("nowhere"), []).partition("\n  f on folder")[2].partition("\n  jobs")[0]
    assert 'how likely "met" is on 2,000 held-out images is not known beforehand' in of_folder
    assert "in about" not in of_folder


def test_so_few_images_are_refused_by_what_quality_is():
    few, enough = ({"search": images, "held_out": 60} for images in (49, 60))
    complete(edited(("models.f.task", "regression"), ("datasets.folder.split", enough)))
    told = problems(edited(("models.f.task", "regression"), ("datasets.folder.split", few)))
    assert [line.partition(" and ")[0].partition(": ")[2] for line in told] == ["datasets.folder: 49 search images"] * 4
    told = problems(edited(("datasets.folder.split", enough)))
    assert all("cannot confirm a quality target of 0.99" in line for line in told)
