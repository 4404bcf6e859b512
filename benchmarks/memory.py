"""Peak memory of each rule's jobs, beside what the rules ask for at first: the table of profiles/README.md.

    python benchmarks/memory.py <study>=<folder>/results [<study>=<folder>/results ...]

Prints a row a rule and a column a study: the largest `max_rss` of Snakemake's benchmark files, in MB. A dash stands for
a rule that a study did not run, or whose jobs were all too short to be measured.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
from wshare.artifacts.timings import stage_of  # noqa: E402
from wshare.files.benchmarks import read_benchmark  # noqa: E402


def peaks(results: Path) -> dict[str, float]:
    """Largest memory of a job of each rule in MiB, of all models and searches of a study."""
    found: dict[str, float] = {}
    for file in [*results.glob("benchmarks/*.tsv"), *results.glob("*/benchmarks/**/*.tsv")]:
        rule = stage_of(file)
        measured = [memory for _, memory in read_benchmark(file) if memory is not None]
        found[rule] = max([*measured, found.get(rule, 0)])
    return {rule: memory for rule, memory in found.items() if memory}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", metavar="STUDY=RESULTS")
    studies = dict(study.split("=", 1) for study in parser.parse_args().studies)
    columns = [peaks(Path(results)) for results in studies.values()]
    rules = "\n".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    print(f"| rule | {' | '.join(studies)} | asked for at first |\n{'|---' * (len(columns) + 2)}|")
    for rule, asked in re.findall(r"^(?:rule|checkpoint) (\w+):.*?mem_mb=growing\((\d+)\)", rules, re.M | re.S):
        measured = [f"{column[rule] * 1.048576:,.0f}" if rule in column else "-" for column in columns]
        print(f"| `{rule}` | {' | '.join(measured)} | {int(asked):,} |")


if __name__ == "__main__":
    main()
