"""Time and memory of the stages that do not depend on what a network has learnt, for the ImageNet study's networks.

    .venv/bin/python benchmarks/networks.py <folder> [network ...]

Runs each network alone through Snakemake on two cores, from its weights file to sensitivity.csv and to the verdict
of the search `timed`, on the random weights and 64 images of tests/networks.py, written into <folder> first. Writes
benchmarks/results/networks.csv, a row a stage: jobs, wall and CPU seconds over all of them, peak memory of the largest,
and images that passed through the network. Rows of networks that are not named stay.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import yaml
from gather import measured

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "results" / "networks.csv"
COLUMNS = ("network", "stage", "jobs", "seconds", "cpu_seconds", "peak_mb", "images_forwarded", "measured")
STAGES = (
    *("fetch_model", "inspect_model", "prepare_images", "evaluate_dense", "extract_weights"),
    *("cluster_layer", "profile_layers", "gather_sensitivity", "measure_inputs"),
    *("search", "pack_model", "evaluate_packed"),
)


def run(folder: Path, network: str) -> None:
    """Run all stages of one network anew; CalledProcessError if one fails."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", str(folder / "config.yaml")),
        *("--cores", "2", "--quiet", "rules", "--forceall"),
        *(f"results/{network}/sensitivity.csv", f"results/{network}/search/timed/metrics.json"),
    ]
    subprocess.run(command, check=True)


def rows(folder: Path, network: str, config: dict) -> list[dict]:
    """A row of the table for each stage of one network."""
    results = folder / "results" / network
    layers = len(json.loads((results / "model" / "layers.json").read_text())["layers"])
    forwarded = images_forwarded(config, network, layers)
    table = []
    for stage in STAGES:
        folders = (".", stage, "search/timed")
        files = [
            file
            for name in folders
            for file in (results / "benchmarks" / name).glob(f"{'*' if name == stage else stage}.tsv")
        ]
        jobs = [read(path) for path in files]
        table.append(
            {
                "network": network,
                "stage": stage,
                "jobs": len(jobs),
                "seconds": round(sum(float(job["s"]) for job in jobs), 1),
                "cpu_seconds": round(sum(number(job["cpu_time"]) for job in jobs), 1),
                # Snakemake looks at a job's memory now and then, and misses some of those that last a second.
                "peak_mb": round(max((number(job["max_rss"]) for job in jobs), default=0)),
                "images_forwarded": forwarded.get(stage, 0),
                "measured": measured(),
            }
        )
    return table


def images_forwarded(config: dict, network: str, layers: int) -> dict[str, int]:
    """Images that pass through the network in each stage; those of a profile once for each layer and candidate."""
    split = config["datasets"][config["models"][network]["dataset"]]["split"]
    probes = layers * len(config["clustering"]["candidates"])
    search = config["searches"]["timed"]["options"]
    return {
        "evaluate_dense": split["search"] + split["held_out"],
        "extract_weights": split["search"],
        "profile_layers": probes * config["sensitivity"]["images"],
        # Each image and its mirror image.
        "measure_inputs": 2 * split["search"],
        "search": search["evaluations"] * split["search"] + layers * search["probe_images"],
        "pack_model": 0,
        "evaluate_packed": split["held_out"],
    }


def read(path: Path) -> dict:
    """The one row of a Snakemake benchmark file."""
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.DictReader(file, delimiter="\t"))


def number(text: str) -> float:
    """A number, or 0 for Snakemake's marks for a value that it does not have."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def update(measured: list[dict]) -> None:
    """Put rows into the table in place of those of the same networks."""
    old = list(csv.DictReader(TABLE.open(encoding="utf-8", newline=""))) if TABLE.exists() else []
    networks = {row["network"] for row in measured}
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([row for row in old if row["network"] not in networks] + measured)


def main() -> None:
    """Measure the networks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*")
    arguments = parser.parse_args()
    if not (arguments.folder / "config.yaml").exists():
        sys.path.insert(0, str(ROOT))
        from tests.networks import write_study

        write_study(arguments.folder)
    config = yaml.safe_load((arguments.folder / "config.yaml").read_text())
    for network in arguments.networks or config["models"]:
        run(arguments.folder, network)
        update(rows(arguments.folder, network, config))


if __name__ == "__main__":
    main()
