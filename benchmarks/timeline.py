"""The time line of a run of the workflow: by rule processor seconds, wall seconds and jobs, and when cores had no job.

    .venv/bin/python benchmarks/timeline.py timeline.csv -- .venv/bin/snakemake --cores 2
    .venv/bin/python benchmarks/timeline.py timeline.csv --cores 2

The first line runs the command, writes a row for each of its Python processes, and prints tables and time line; the
second one prints them again. Snakemake's own benchmark files look at a job every half second, after fifteen seconds
twice a minute, and so miss much of its processor time: here each process tells its own as it ends. Processor seconds
are much the same on a busy machine; wall seconds are not.
"""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# Python runs this at the start of each process that finds it on its path.
RECORDER = """
import atexit, json, os, resource, sys, time
def tell(start=time.time()):
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    row = [sys.orig_argv, start, time.time()] + [one.ru_utime + one.ru_stime for one in used]
    with open(os.environ["WSHARE_TIMELINE"], "a") as file:
        file.write(json.dumps(row) + "\\n")
atexit.register(tell)
"""
SNAKEMAKE = "snakemake"
COLUMNS = 100


@dataclass(frozen=True)
class Job:
    """A process of a run: rule, model and search; seconds from the run's start; processor seconds."""

    rule: str
    model: str
    search: str
    start: float
    end: float
    cpu: float

    @property
    def wall(self) -> float:
        return self.end - self.start


def record(command: list[str], file: Path) -> int:
    """Run a command, and write its processes as rows of `file`; returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        told = Path(name, "told")
        Path(name, "sitecustomize.py").write_text(RECORDER)
        path = os.pathsep.join(filter(None, (name, os.environ.get("PYTHONPATH"))))
        started = time.time()
        code = subprocess.run(command, env=os.environ | {"PYTHONPATH": path, "WSHARE_TIMELINE": str(told)}).returncode
        jobs = read_told(told.read_text().splitlines(), started)
    with file.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, [field.name for field in fields(Job)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(job).items()}
            for job in jobs
        )
    return code


def read_told(lines: Iterable[str], started: float) -> list[Job]:
    """Jobs by their start, from what processes told.

    Snakemake's processor seconds are its own and those of shells, solvers and the ends of processes.
    """
    jobs, others = [], []
    for line in lines:
        argv, start, end, own, children = json.loads(line)
        if argv[1:3] == ["-m", "wshare"]:
            jobs.append(Job(argv[3], *_named(argv), start - started, end - started, own + children))
        elif any(Path(argument).name == SNAKEMAKE for argument in argv[:3]):
            others.append((start - started, end - started, own + children))
    spent = sum(job.cpu for job in jobs)
    jobs += [Job(SNAKEMAKE, "", "", start, end, cpu - spent) for start, end, cpu in others]
    return sorted(jobs, key=lambda job: job.start)


def _named(argv: list[str]) -> tuple[str, str]:
    """Model and search of a job, from the files that its command line names; empty for those of a whole study."""
    files = [Path(argument).parts for argument in argv if argument.startswith("results/")]
    models = {parts[1] for parts in files if len(parts) > 2}
    searches = {parts[3] for parts in files if len(parts) > 4 and parts[2] == "search"}
    return models.pop() if len(models) == 1 else "", searches.pop() if len(searches) == 1 else ""


def read_jobs(file: Path) -> list[Job]:
    """The rows that `record` wrote."""
    with file.open(newline="", encoding="utf-8") as table:
        return [Job(*row[:3], *map(float, row[3:])) for row in list(csv.reader(table))[1:]]


def by_rule(jobs: list[Job]) -> list[tuple[str, float, float, int]]:
    """Rule, processor seconds, wall seconds and jobs, the dearest rule first."""
    rules = {job.rule: [other for other in jobs if other.rule == job.rule] for job in jobs}
    rows = [(rule, sum(job.cpu for job in own), sum(job.wall for job in own), len(own)) for rule, own in rules.items()]
    return sorted(rows, key=lambda row: -row[1])


def without_job(jobs: list[Job], cores: int) -> float:
    """Core seconds between the start of Snakemake and its end in which fewer jobs than cores ran."""
    times = sorted({moment for job in jobs for moment in (job.start, job.end)})
    idle = 0.0
    for start, end in itertools.pairwise(times):
        running = sum(job.start <= start and job.end > start for job in jobs if job.rule != SNAKEMAKE)
        idle += (end - start) * max(cores - running, 0)
    return idle


def drawn(jobs: list[Job], columns: int = COLUMNS) -> list[str]:
    """A line for each model and rule, or search: a digit where so many of its jobs ran for most of the column."""
    last = max(job.end for job in jobs)
    rows: dict[str, list[Job]] = {}
    for job in jobs:
        if job.rule != SNAKEMAKE:
            rows.setdefault(" ".join(filter(None, (job.model, job.rule, job.search))), []).append(job)
    width = max(map(len, rows))
    lines = []
    for label, own in rows.items():
        cells = []
        for column in range(columns):
            start, end = column * last / columns, (column + 1) * last / columns
            ran = sum(max(0.0, min(job.end, end) - max(job.start, start)) for job in own) / (end - start)
            cells.append(" " if ran == 0 else str(round(ran)) if ran >= 0.5 else ".")
        lines.append(f"{label:<{width}} |{''.join(cells)}|")
    return lines


def main() -> None:
    """Record a run if a command is given; print what its rows tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cores", type=int, default=2, help="cores that the run had")
    parser.add_argument("command", nargs="*", help="after --")
    arguments = parser.parse_args()
    code = record(arguments.command, arguments.file) if arguments.command else 0
    jobs = read_jobs(arguments.file)
    wall, cpu = max(job.end for job in jobs), sum(job.cpu for job in jobs)
    print("\n".join(drawn(jobs)))
    print(f"\n| one column: {wall / COLUMNS:.1f} s; rule | CPU s | wall s | jobs |\n|---|---|---|---|")
    for rule, spent, lasted, count in by_rule(jobs):
        print(f"| `{rule}` | {spent:.1f} | {lasted:.1f} | {count} |")
    idle = without_job(jobs, arguments.cores)
    total = arguments.cores * wall
    print(f"| in all | {cpu:.1f} | {wall:.1f} (the run) | {len(jobs)} |")
    print(f"\n{arguments.cores} cores: {idle:.0f} of {total:.0f} core s without a job ({idle / total:.0%}), ", end="")
    print(f"{max(total - cpu, 0):.0f} without work of this run ({max(1 - cpu / total, 0):.0%})")
    sys.exit(code)


if __name__ == "__main__":
    main()
