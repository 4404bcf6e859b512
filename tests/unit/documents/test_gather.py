"""benchmarks/gather.py and benchmarks/splits.py put the figures of finished runs into tables."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from wshare.config.validation import complete
from wshare.evaluation.verdict import compare
from wshare.files.sealed import read_json
from wshare.tasks import classification

from ..report.made_up import IMAGES, MODEL, write_results

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def gather():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("gather")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results folder of a made-up model with two searches."""
    return write_results(tmp_path_factory.mktemp("study"), ("rate_distortion", "uniform"))


@pytest.mark.slow
def test_a_row_has_the_figures_of_its_search(gather, results):
    rows = {row["search"]: row for row in gather.of_model(results)}
    assert rows.keys() == {"rate_distortion", "uniform"}
    row, metrics = rows["uniform"], read_json(results / "search" / "uniform" / "metrics.json")
    assert row.keys() == {*gather.COLUMNS}
    assert (row["model"], row["images"], row["search_images"]) == (MODEL, IMAGES, IMAGES)
    assert row["on_disk"] == metrics["bytes"]["float32"] / metrics["bytes"]["packed"]
    assert row["packed_bytes"] == metrics["bytes"]["packed"]
    assert [row["low"], row["high"]] == metrics["relative_quality_ci95"]
    assert row["kl"] == metrics["compressed"]["kl"]
    assert row["verdict"] == metrics["verdict"]


def test_the_counts_give_both_accuracies_and_the_relative_one(gather, results):
    for row in gather.of_model(results):
        assert row["kept"] + row["lost"] == round(row["before"] * IMAGES)
        assert row["kept"] + row["gained"] == round(row["after"] * IMAGES)
        assert row["relative_quality"] == pytest.approx((row["kept"] + row["gained"]) / (row["kept"] + row["lost"]))


def test_kept_lost_and_gained_are_counted_by_label_or_else_by_the_float32_prediction():
    labels, float32, compressed = np.array([(3, 3, 3), (3, 3, 4), (3, 4, 3), (3, 4, 4), (3, 3, 3)]).T
    logits = np.eye(5, dtype=np.float32)
    for given, expected in (
        (labels, {"kept": 2, "lost": 1, "gained": 1}),
        (None, {"kept": 3, "lost": 2, "gained": 0}),
    ):
        counts = compare(classification, logits[compressed], logits[float32], given)["counts"]
        assert {kind: counts[kind] for kind in ("kept", "lost", "gained")} == expected


def test_a_table_keeps_the_rows_of_other_searches_and_renews_its_own(gather, results, tmp_path):
    table, rows = tmp_path / "table.csv", gather.of_model(results)
    gather.update(table, rows)
    gather.update(table, [rows[0] | {"seed": 1, "kl": 0.5}, rows[1] | {"kl": 0.25}])
    found = gather.read(table)
    assert [(row["search"], row["seed"]) for row in found] == [
        ("rate_distortion", "0"),
        ("rate_distortion", "1"),
        ("uniform", "0"),
    ]
    assert [row["kl"] for row in found] == [str(rows[0]["kl"]), "0.5", "0.25"]
    before = table.read_bytes()
    gather.update(table, [])
    assert table.read_bytes() == before


def test_a_file_scored_elsewhere_has_that_quality_and_no_verdict(gather, results, tmp_path):
    search = results / "search" / "uniform"
    elsewhere = read_json(search / "metrics.json") | {"relative_quality": 0.5}
    (tmp_path / "evaluated.json").write_text(json.dumps(elsewhere))
    (row,) = gather._rows(f"{search}={tmp_path / 'evaluated.json'}")
    assert (row["relative_quality"], row["verdict"], row["lost"]) == (0.5, "", "")


@pytest.mark.slow
def test_splits_are_gathered_from_a_folder_a_seed_also_before_all_are_finished(gather, tmp_path):
    splits = importlib.import_module("splits")
    for seed in (0, 1):
        root = write_results(tmp_path / f"seed{seed}", ("rate_distortion",))
        path = root / "search" / "rate_distortion" / "metrics.json"
        path.write_text(json.dumps(read_json(path) | {"seed": seed}))
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1, 2)]
    assert [row["seed"] for row in splits.gather(folders[:1], tmp_path / "splits.csv")] == [0]
    assert [row["seed"] for row in splits.gather(folders, tmp_path / "splits.csv")] == [0, 1]
    assert [row["seed"] for row in gather.read(tmp_path / "splits.csv")] == ["0", "1"]


def test_each_split_is_run_by_a_command_of_its_own(gather, tmp_path):
    splits, tables = (importlib.import_module(name) for name in ("splits", "tables"))
    command = splits.command(tmp_path / "seed3", tmp_path, 3, 2)
    assert {f"image_folder={tmp_path}", "seed=3"} <= {*command}
    assert command[command.index("--directory") + 1] == str(tmp_path / "seed3")
    study = yaml.safe_load(splits.STUDY.read_text(encoding="utf-8"))
    searches = complete(study | {"image_folder": "/folder/of/images", "seed": 3})["searches"]
    shipped = yaml.safe_load((ROOT / "config" / "efficientnet_lite0.yaml").read_text(encoding="utf-8"))["searches"]
    assert {*tables.TARGETS, *tables.AROUND} == {*searches}
    assert all(study["searches"][name] == shipped[name] for name in tables.TARGETS)
