"""Time that each stage took, from Snakemake's benchmark files."""

import csv
from pathlib import Path


def seconds_by_stage(folder: Path, search: str) -> dict[str, float]:
    """Seconds of each stage by name, summed over its jobs; of the searches only the named one.

    `folder` holds `<stage>.tsv`, `<stage>/<job>.tsv`, and `search/<search>/<stage>.tsv`.
    """
    seconds: dict[str, float] = {}
    for file in sorted(folder.rglob("*.tsv")):
        parts = file.relative_to(folder).with_suffix("").parts
        if parts[0] == "search":
            if parts[1] != search or parts[2] == "evaluate_packed":
                continue
            stage = parts[2]
        else:
            stage = parts[0]
        with file.open(encoding="utf-8", newline="") as table:
            spent = sum(float(row["s"]) for row in csv.DictReader(table, delimiter="\t"))
        seconds[stage] = seconds.get(stage, 0.0) + spent
    return seconds
