"""Time and memory that each stage took, from Snakemake's benchmark files."""

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a stage's jobs took: wall seconds in sum, peak memory in MiB (None if not measured), jobs."""

    seconds: float
    memory: float | None
    jobs: int


def usage_by_stage(folder: Path, search: str, jobs: dict[str, list[str]]) -> dict[str, Usage]:
    """Usage of each stage by name; of the searches only the named one.

    `folder` holds `<stage>.tsv`, `<stage>/<job>.tsv` and `search/<search>/<stage>.tsv`. `jobs` names the jobs of
    each stage that has several; files of others were left by runs with other settings. Where it names none, the search
    goes by measured inputs, else by profiles: the other's stages are left out.
    """
    others = "measure_inputs" if jobs else "gather_sensitivity"
    files = [(file.stem, file) for file in sorted(folder.glob("*.tsv")) if file.stem != others]
    files += [(stage, folder / stage / f"{job}.tsv") for stage, names in jobs.items() for job in names]
    files += [(file.stem, file) for file in sorted((folder / "search" / search).glob("*.tsv"))]
    found: dict[str, list[tuple[float, float | None]]] = {}
    for stage, file in files:
        if file.exists():
            found.setdefault(stage, []).extend(read_benchmark(file))
    return {
        stage: Usage(
            sum(seconds for seconds, _ in rows),
            max((memory for _, memory in rows if memory is not None), default=None),
            len(rows),
        )
        for stage, rows in found.items()
    }


def read_benchmark(file: Path) -> list[tuple[float, float | None]]:
    """Wall seconds and largest resident memory in MiB of each repetition; None where a job was too short to measure."""
    with file.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    return [(float(row["s"]), float(row["max_rss"]) if row["max_rss"] not in ("-", "NA") else None) for row in rows]


def seconds_by_stage(folder: Path, search: str, jobs: dict[str, list[str]]) -> dict[str, float]:
    """Seconds of each stage but the verdict, which asks for them before its own end; arguments as above."""
    usage = usage_by_stage(folder, search, jobs)
    return {stage: found.seconds for stage, found in usage.items() if stage != "evaluate_packed"}


def jobs_of(layers: list[str], layers_per_job: int) -> dict[str, list[str]]:
    """Names of the jobs of the stages that have several, for a network whose layers have these folders.

    None for 0 `layers_per_job`, which tells of a search that needs neither clusters nor profiles.
    """
    if not layers_per_job:
        return {}
    groups = -(-len(layers) // layers_per_job)
    return {"cluster_layer": layers, "profile_layers": [str(group) for group in range(groups)]}
