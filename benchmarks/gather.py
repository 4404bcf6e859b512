"""Figures of finished runs into a table of benchmarks/results, from which benchmarks/tables.py makes the pages.

    python benchmarks/gather.py study results/efficientnet_lite0 [<folder of another model> ...]
    python benchmarks/gather.py demo results/lenet5 results/resnet_ds results/efficientnet_lite0
    python benchmarks/gather.py gradient gradient/*/results/lenet5 gradient/*/results/resnet_ds
    python benchmarks/gather.py photos results/efficientnet_lite0/search/crops=<what `wshare evaluate` printed>

Writes benchmarks/results/<table>.csv, a row a search; rows of other models and searches stay. `photos` takes a packed
file's quality from `python -m wshare evaluate` on other images, all else from the search's own folder. `measured` tells
the version and the day. Counts are of held-out images: `kept` are right with both networks, `lost` with float32 alone,
`gained` with the packed file alone. Divergence (`kl`) is in nats.
"""

import argparse
import csv
import datetime
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
from wshare.files.tables import write_table  # noqa: E402
from wshare.version import __version__  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
KEY = ("seed", "model", "search")
QUALITY = (
    *("images", "before", "after", "relative_quality", "low", "high"),
    *("expected", "expected_low", "expected_high", "kl", "agreement"),
)
COLUMNS = [
    *(*KEY, "format", "quality_target", "float32_bytes", "packed_bytes", "on_disk", "analytic", "bits_per_weight"),
    *("search_images", "before_on_search", *QUALITY, "kept", "lost", "gained", "verdict"),
    *("evaluations", "images_forwarded", "measured"),
]


def of_model(folder: Path) -> list[dict]:
    """A row for each finished search of a model's results folder."""
    return [of_search(path.parent) for path in sorted(folder.glob("search/*/metrics.json"))]


def of_search(folder: Path) -> dict:
    """The row of one search, from its own folder and the float32 network's figures on both splits."""
    metrics = _read(folder / "metrics.json")
    before = _read(folder.parents[1] / "baseline" / "metrics.json")["search"]
    return {
        "seed": metrics["seed"],
        "model": metrics["model"],
        "search": metrics["search"],
        "format": metrics["format"],
        "quality_target": metrics["quality_target"],
        "float32_bytes": metrics["bytes"]["float32"],
        "packed_bytes": metrics["bytes"]["packed"],
        **metrics["compression_rate"],
        "bits_per_weight": metrics["bits_per_weight"],
        "search_images": before["images"],
        "before_on_search": before["top1"],
        **quality(metrics),
        **{kind: metrics["counts"][kind] for kind in ("kept", "lost", "gained")},
        "verdict": metrics["verdict"],
        "evaluations": metrics["evaluations"],
        "images_forwarded": metrics["images_forwarded"],
        "measured": measured(),
    }


def quality(metrics: dict) -> dict:
    """Quality on held-out images, from a metrics.json or from what `wshare evaluate` prints."""
    low, high = metrics["relative_quality_ci95"]
    expected_low, expected_high = metrics["expected_relative_quality_ci95"]
    compressed = metrics["compressed"]
    found = (compressed["images"], metrics["float32"]["top1"], compressed["top1"], metrics["relative_quality"])
    found += (low, high, metrics["expected_relative_quality"], expected_low, expected_high)
    return dict(zip(QUALITY, (*found, compressed["kl"], compressed["agreement"]), strict=True))


def measured() -> str:
    """The version of the working tree, or of the package where there is no history, and today."""
    version = __version__
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return f"{version}, {datetime.datetime.now(datetime.UTC).date()}"


def update(path: Path, rows: list[dict]) -> None:
    """Put rows into a table in place of those of the same seed, model and search; by model, search and seed."""
    rows = [{name: str(row.get(name, "")) for name in COLUMNS} for row in rows]
    new = {tuple(row[name] for name in KEY) for row in rows}
    rows += [row for row in read(path) if tuple(row[name] for name in KEY) not in new]
    write_table(path, COLUMNS, sorted(rows, key=lambda row: (row["model"], row["search"], int(row["seed"] or 0))))


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a table as text; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Write the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["study", "demo", "gradient", "photos"])
    parser.add_argument("folders", nargs="+")
    arguments = parser.parse_args()
    rows = [row for folder in arguments.folders for row in _rows(folder)]
    update(RESULTS / f"{arguments.table}.csv", rows)


def _rows(folder: str) -> list[dict]:
    """Rows of a model's folder, or the one of SEARCH=EVALUATED."""
    search, _, evaluated = folder.partition("=")
    if not evaluated:
        return of_model(Path(search))
    # What was found on the search's own held-out images says nothing about others.
    own = dict.fromkeys(("kept", "lost", "gained", "verdict"), "")
    return [of_search(Path(search)) | own | quality(_read(Path(evaluated)))]


if __name__ == "__main__":
    main()
