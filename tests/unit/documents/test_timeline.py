"""benchmarks/timeline.py tells by rule what a run took, and when cores had no job."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def timeline():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("timeline")


@pytest.fixture
def jobs(timeline):
    """Two jobs side by side, one after them, and Snakemake around them."""
    rows = [
        ("snakemake", "", "", 0.0, 10.0, 1.0),
        ("train_model", "a", "", 1.0, 5.0, 3.0),
        ("train_model", "b", "", 1.0, 3.0, 2.0),
        ("search", "a", "slope", 5.0, 9.0, 3.5),
    ]
    return [timeline.Job(*row) for row in rows]


def test_rules_are_summed_the_dearest_first(timeline, jobs):
    assert timeline.by_rule(jobs) == [
        ("train_model", 5.0, 6.0, 2),
        ("search", 3.5, 4.0, 1),
        ("snakemake", 1.0, 10.0, 1),
    ]


def test_cores_are_without_a_job_where_fewer_run_than_there_are(timeline, jobs):
    # Both for a second before and after, one of them for two seconds and for four.
    assert timeline.without_job(jobs, 2) == pytest.approx(2 * 2 + 2 + 4)
    assert timeline.without_job(jobs, 1) == pytest.approx(2)


def test_each_model_rule_and_search_has_a_line(timeline, jobs):
    assert timeline.drawn(jobs, columns=10) == [
        "a train_model  | 1111     |",
        "b train_model  | 11       |",
        "a search slope |     1111 |",
    ]


def test_processes_tell_what_they_took(timeline, tmp_path):
    """The recorder in a process of its own that stands for a job, and one that stands for Snakemake and starts it."""
    package = tmp_path / "package"
    package.mkdir()
    files = "['results/net/model/model.json', 'results/net/search/slope/front.csv']"
    (package / "wshare.py").write_text("sum(range(3_000_000))\n")
    snakemake = tmp_path / "snakemake"
    snakemake.write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-m', 'wshare', 'search', '--spec', *{files}], check=True)\nsys.exit(3)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        code = timeline.record([sys.executable, str(snakemake)], tmp_path / "timeline.csv")
    assert code == 3
    outer, job = timeline.read_jobs(tmp_path / "timeline.csv")
    assert (outer.rule, job.rule, job.model, job.search) == ("snakemake", "search", "net", "slope")
    # Times are told in hundredths of a second.
    assert 0 <= outer.start < job.start < job.end <= outer.end
    assert 0 < job.cpu <= job.wall + 0.05
