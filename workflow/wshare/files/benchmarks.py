"""Benchmark files, as Snakemake writes them."""

import csv
from pathlib import Path


def read_benchmark(file: Path) -> list[tuple[float, float | None]]:
    """Wall seconds and largest resident memory in MiB of each repetition; None where a job was too short to measure."""
    with file.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    return [(float(row["s"]), float(row["max_rss"]) if row["max_rss"] not in ("-", "NA") else None) for row in rows]
