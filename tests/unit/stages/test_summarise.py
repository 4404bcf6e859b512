"""The block that a run ends with says what its numbers are."""

import csv
from pathlib import Path

import pytest

from wshare.errors import FormatError
from wshare.files.sealed import read_json, sha256_file, write_json
from wshare.stages.summarise import summarise


def result(measure: str, before: float, after: float) -> dict:
    return {
        "model": f"net_{measure}",
        "search": "slope",
        "dataset": "d",
        "task": "classification",
        "measure": measure,
        "quality_target": 0.97,
        "float32": {"top1": before, "top5": 1.0, "images": 400},
        "compressed": {"top1": after, "top5": 1.0, "images": 400, "kl": 0.01, "agreement": 0.982},
        "relative_quality": after / before,
        "relative_quality_ci95": [0.968, 0.996],
        "counts": {"kept": 300, "gained": 10, "lost": 12, "neither": 78},
        "needed": {"balanced_images": False, "held_out_images": 2500, "quality_target": 0.968},
        "constant": {"relative_quality": 0.3},
        "accepted": True,
        "interval": {"method": "exact", "confidence": 0.95},
        "verdict": "undecided",
        "bytes": {"float32": 4_000_000, "packed": 400_000},
        "compression_rate": {"on_disk": 10.0, "analytic": 11.0},
        "bits_per_weight": 3.2,
        "evaluations": 7,
        "gradient_epochs": None,
        "images_forwarded": 2800,
    }


def files(folder: Path, content: dict) -> tuple[Path, Path, Path, Path]:
    """Paths of a result's metrics, timings, recipe and baseline."""
    model = folder / content["model"]
    search = model / "search" / content["search"]
    return (*(search / f"{name}.json" for name in ("metrics", "timings", "recipe")), model / "baseline/metrics.json")


def summary(
    folder: Path, *results: dict, skipped: tuple[int, int] = (0, 0), options: dict | None = None
) -> tuple[str, list[dict]]:
    """The text and the table of results; `skipped` search and held-out images of each model were unreadable."""
    written = [files(folder, content) for content in results]
    for content, (metrics, timings, recipe, baseline) in zip(results, written, strict=True):
        write_json(recipe, {"settings": {"options": options or {}}})
        hashes = {"model": "0", "search_images": "1", "held_out_images": "2", "recipe": sha256_file(recipe)}
        write_json(metrics, content | {"sha256": hashes | {"packed": "3"}})
        write_json(timings, {"seconds": {"search": 1.5}, "sha256": {"packed": "3"}})
        counts = {"search": {"skipped": skipped[0]}, "held_out": {"skipped": skipped[1]}}
        write_json(baseline, counts | {"sha256": {"model": "0", "search_images": "1", "held_out_images": "2"}})
    summarise(*map(list, zip(*written, strict=True)), folder / "summary.txt", folder / "summary.csv")
    with open(folder / "summary.csv", newline="") as file:
        return (folder / "summary.txt").read_text(), list(csv.DictReader(file))


def test_without_labels_the_text_says_agreement_and_no_top1(tmp_path):
    text, (row,) = summary(tmp_path, result("agreement", 1.0, 0.982))
    assert "no labels on 400 held-out images" in text
    expected = "agreement with float32 98.20% on 400 held-out images (no labels), 95 % interval 96.80% to 99.60%"
    assert expected in text
    assert "top-1" not in text
    assert "100.00%" not in text
    assert row["measure"] == "agreement"


def test_the_seconds_are_those_of_the_search(tmp_path):
    _, (row,) = summary(tmp_path, result("accuracy", 0.8, 0.796))
    assert row["search_seconds"] == "1.5"


def test_with_labels_the_text_says_top1_before_and_after(tmp_path):
    text, rows = summary(tmp_path, result("accuracy", 0.8, 0.796), result("agreement", 1.0, 0.982))
    labelled = text.split("\n\n")[0]
    assert "top-1 80.00% on 400 held-out images" in labelled
    assert "top-1 80.00% -> 79.60%: 99.50% of float32, 95 % interval 96.80% to 99.60%" in labelled
    assert "agreement" not in labelled.replace("net_agreement", "")
    assert [row["measure"] for row in rows] == ["accuracy", "agreement"]


@pytest.mark.parametrize(
    ("skipped", "told"),
    [
        ((0, 0), "top-1 80.00% on 400 held-out images"),
        ((0, 3), "top-1 80.00% on 400 held-out images; unreadable images left out: 3 held-out"),
        ((2, 0), "on 400 held-out images; unreadable images left out: 2 search"),
        ((1200, 3), "on 400 held-out images; unreadable images left out: 1,200 search, 3 held-out"),
    ],
)
def test_the_heading_tells_how_many_images_were_unreadable_if_any_were(tmp_path, skipped, told):
    text, _ = summary(tmp_path, result("accuracy", 0.8, 0.796), skipped=skipped)
    assert text.splitlines()[0].endswith(told)


def advice(folder: Path, *results: dict, **given) -> str:
    """What the text says to do next."""
    text, _ = summary(folder, *results, **given)
    (line,) = (line for line in text.splitlines() if line.startswith("  next: "))
    return line.removeprefix("  next: ")


@pytest.mark.parametrize(
    ("verdict", "options", "expected"),
    [
        ("undecided", {}, "give datasets.d.split.held_out 2,500 images or more, or raise searches.slope.confidence"),
        ("missed", {}, "raise searches.slope.confidence, or lower searches.slope.quality_target"),
        (
            "missed",
            {"compression_rate": None},
            "raise searches.slope.confidence, or lower searches.slope.quality_target",
        ),
        ("missed", {"compression_rate": 8}, "lower searches.slope.options.compression_rate (now 8)"),
        (
            "undecided",
            {"compression_rate": 8.5},
            "give datasets.d.split.held_out 2,500 images or more, or lower searches.slope.options.compression_rate "
            "(now 8.5)",
        ),
    ],
)
def test_advice_names_the_keys_that_decide(tmp_path, verdict, options, expected):
    found = result("accuracy", 0.8, 0.7) | {"verdict": verdict}
    assert advice(tmp_path, found, options=options) == f"{expected}, and run again"


def test_advice_is_about_the_search_nearest_to_its_target(tmp_path):
    searches = [
        result("accuracy", 0.8, after) | {"search": name, "verdict": verdict}
        for name, after, verdict in (("a", 0.6, "undecided"), ("b", 0.7, "undecided"), ("c", 0.75, "missed"))
    ]
    assert "searches.b.confidence" in advice(tmp_path, *searches)


def test_advice_after_a_met_target_is_to_load_the_smallest_file(tmp_path):
    searches = [
        result("accuracy", 0.8, 0.8) | {"search": name, "verdict": verdict, "bytes": {"float32": 100, "packed": size}}
        for name, size, verdict in (("a", 30, "met"), ("b", 20, "met"), ("c", 10, "missed"))
    ]
    assert f"wshare.load_packed('{tmp_path}/{searches[1]['model']}/search/b/packed.safetensors')" in advice(
        tmp_path, *searches
    )


def test_files_that_were_not_made_from_one_another_are_refused(tmp_path):
    given = result("accuracy", 0.9, 0.88) | {"model": "m", "search": "s"}
    summary(tmp_path, given)
    metrics, timings, recipe, baseline = files(tmp_path, given)
    content, reference, clock = read_json(metrics), read_json(baseline), read_json(timings)

    def again() -> None:
        summarise([metrics], [timings], [recipe], [baseline], tmp_path / "summary.txt", tmp_path / "summary.csv")

    for name in ("model", "search_images", "held_out_images"):
        write_json(baseline, reference | {"sha256": reference["sha256"] | {name: "other"}})
        with pytest.raises(FormatError, match=f"^{metrics}: of another model or other images than {baseline}; "):
            again()
    write_json(baseline, reference)
    write_json(timings, clock | {"sha256": {"packed": "other"}})
    with pytest.raises(FormatError, match=f"^{timings}: made from other packed than are there now; "):
        again()
    write_json(timings, clock)
    write_json(metrics, content | {"sha256": content["sha256"] | {"recipe": "other"}})
    with pytest.raises(FormatError, match=f"^{recipe}: not the file that {metrics} describes, or damaged; "):
        again()


def test_a_share_below_the_target_is_not_written_as_the_target(tmp_path):
    content = result("accuracy", 0.8, 0.7759999) | {"relative_quality_ci95": [0.9699999, 0.9711]}
    text, _ = summary(tmp_path, content)
    assert "97.00%" not in text.partition("quality target")[0]
    assert "96.99999%" in text


def test_under_a_verdict_stand_the_counts_and_what_would_decide(tmp_path):
    text, _ = summary(tmp_path, result("accuracy", 0.8, 0.796))
    assert "of 400 held-out images float32 has 312 right: 12 were lost, 10 gained" in text
    assert "interval: exact, at 95%" in text
    assert "about 2,500 held-out images would probably decide it" in text
    assert "a target of 0.968 would be met" in text
    assert "accepted" not in text


def test_a_search_that_accepted_nothing_says_so_and_what_to_change(tmp_path):
    text, _ = summary(tmp_path, result("accuracy", 0.8, 0.7) | {"accepted": False, "verdict": "missed"})
    assert "none of the 7 combinations measured was accepted" in text
    assert "lower quality_target or confidence, or give more search images" in text


def test_images_of_one_class_are_said_to_tell_nothing(tmp_path):
    needed = {"balanced_images": True, "held_out_images": None, "quality_target": None}
    content = result("agreement", 1.0, 0.998) | {"needed": needed, "constant": {"relative_quality": 0.998}}
    text, _ = summary(tmp_path, content)
    assert "these images cannot tell: one output for all of them keeps 99.80%" in text
    assert "  next: give datasets.d about as many images of each class, and run again" in text


@pytest.mark.parametrize(("passes", "words"), [(0, "no pass helped"), (1, "one pass"), (16, "16 passes")])
def test_gradient_calibration_is_told_of(tmp_path, passes, words):
    text, rows = summary(tmp_path, result("accuracy", 0.8, 0.796) | {"gradient_epochs": passes})
    assert f"gradient calibration, without labels, on the search images: {words}" in text
    assert [row["gradient_epochs"] for row in rows] == [str(passes)]
    assert "gradient calibration" not in summary(tmp_path, result("accuracy", 0.8, 0.796))[0]
