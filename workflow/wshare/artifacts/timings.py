"""Time and memory that each stage took, from Snakemake's benchmark files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wshare.files.benchmarks import read_benchmark


@dataclass(frozen=True)
class Usage:
    """What a stage's jobs took: wall seconds in sum, peak memory in MiB (None if not measured), jobs."""

    seconds: float
    memory: float | None
    jobs: int


def usage_by_stage(benchmarks: Iterable[Path]) -> dict[str, Usage]:
    """Usage of each stage by name, of these benchmark files; of those that are gone nothing is said."""
    found: dict[str, list[tuple[float, float | None]]] = {}
    for file in benchmarks:
        if file.exists():
            found.setdefault(stage_of(file), []).extend(read_benchmark(file))
    return {
        stage: Usage(
            sum(seconds for seconds, _ in rows),
            max((memory for _, memory in rows if memory is not None), default=None),
            len(rows),
        )
        for stage, rows in found.items()
    }


def seconds_by_stage(benchmarks: Iterable[Path]) -> dict[str, float]:
    """Seconds of each stage; argument as above."""
    return {stage: used.seconds for stage, used in usage_by_stage(benchmarks).items()}


def of_search(benchmarks: Iterable[Path], search: str, stages: Iterable[str]) -> list[Path]:
    """Those of a model's benchmark files that tell of one search, or of the stages that went before it."""
    stages = set(stages)
    return [file for file in benchmarks if (_search(file) or search) == search and stage_of(file) in stages]


def stage_of(file: Path) -> str:
    """Stage of a benchmark file: `<stage>.tsv`, `<stage>/<job>.tsv` or `search/<search>/<stage>.tsv`, of a model."""
    several = file.parent.name != "benchmarks" and _search(file) is None
    return file.parent.name if several else file.stem


def _search(file: Path) -> str | None:
    below = file.parts[-4:-1]
    return below[2] if below[:2] == ("benchmarks", "search") else None
