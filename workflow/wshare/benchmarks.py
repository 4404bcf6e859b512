"""Time that each stage took, from Snakemake's benchmark files."""

import csv
from pathlib import Path


def seconds_by_stage(folder: Path, search: str, jobs: dict[str, list[str]]) -> dict[str, float]:
    """Seconds of each stage by name, summed over its jobs; of the searches only the named one.

    `folder` holds `<stage>.tsv`, `<stage>/<job>.tsv` and `search/<search>/<stage>.tsv`. `jobs` names the jobs of
    each stage that has several; files of others were left by runs with other settings.
    """
    files = [(file.stem, file) for file in sorted(folder.glob("*.tsv"))]
    files += [(stage, folder / stage / f"{job}.tsv") for stage, names in jobs.items() for job in names]
    files += [(file.stem, file) for file in sorted((folder / "search" / search).glob("*.tsv"))]
    seconds: dict[str, float] = {}
    for stage, file in files:
        # This stage is not at its end; what lies there is from an earlier run.
        if stage == "evaluate_packed" or not file.exists():
            continue
        with file.open(encoding="utf-8", newline="") as table:
            spent = sum(float(row["s"]) for row in csv.DictReader(table, delimiter="\t"))
        seconds[stage] = seconds.get(stage, 0.0) + spent
    return seconds
