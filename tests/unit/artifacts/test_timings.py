"""Time and memory of stages, from the benchmark files that a rule names."""

from pathlib import Path

import pytest

from wshare.artifacts.timings import Usage, of_search, seconds_by_stage, stage_of, usage_by_stage
from wshare.files.atomic import write_text
from wshare.files.benchmarks import read_benchmark

# Times and peak memory by file.
ROWS = {
    "inspect_model": "1\tx\t-",
    "cluster_layer/a": "2\tx\t30",
    "cluster_layer/search": "3\tx\tNA",
    "search/slope/search": "4\tx\t70",
    "search/cluster_layer/search": "5\tx\t80",
}


@pytest.fixture(params=["m", "benchmarks", "search"])
def files(tmp_path, request) -> list[Path]:
    """Benchmark files of a model, whose name may be that of a folder too."""
    folder = tmp_path / "results" / request.param / "benchmarks"
    for name, row in ROWS.items():
        write_text(folder / f"{name}.tsv", f"s\th:m:s\tmax_rss\n{row}\n")
    return [folder / f"{name}.tsv" for name in (*ROWS, "cluster_layer/gone")]


def test_a_file_tells_its_stage_whatever_layers_and_searches_are_called(files):
    expected = ["inspect_model", "cluster_layer", "cluster_layer", "search", "search", "cluster_layer"]
    assert [stage_of(file) for file in files] == expected


def test_usage_takes_the_sum_of_times_and_the_peak_of_memory(files):
    assert read_benchmark(files[0]) == [(1.0, None)]
    assert usage_by_stage(files) == {
        "inspect_model": Usage(1.0, None, 1),
        "cluster_layer": Usage(5.0, 30.0, 2),
        "search": Usage(9.0, 80.0, 2),
    }
    assert seconds_by_stage(files) == {"inspect_model": 1.0, "cluster_layer": 5.0, "search": 9.0}


def test_a_search_took_what_its_own_stages_took(files):
    assert of_search(files, "slope", ["search", "inspect_model"]) == [files[0], files[3]]
    assert of_search(files, "cluster_layer", ["search", "cluster_layer"]) == [files[1], files[2], files[4], files[5]]
