"""What a large study costs Snakemake itself: jobs, files, seconds and memory of a plan, and the start of one job.

    .venv/bin/python benchmarks/scale.py [--models 10] [--layers 100] [--searches 4] [--layers-per-job 16]

Lays out a study of so many networks in a temporary folder: their layers.json is made up, no network is loaded and no
job runs. Prints one table. Seconds are processor seconds, which a busy machine changes little.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
from wshare.files.sealed import write_json  # noqa: E402

# One needs calibration statistics, the others clusters and sensitivity.
METHODS = ("rate_distortion", "slope", "uniform", "two_step")


def write_study(folder: Path, models: int, layers: int, searches: int, layers_per_job: int) -> None:
    """A configuration, and what a plan needs to know all layers: model and layers.json of each network."""
    names = [f"model{i}" for i in range(models)]
    model = {"source": "torchvision", "architecture": "resnet50", "dataset": "imagenet"}
    config = {
        "datasets": {"imagenet": {"source": "imagenet", "path": "images", "split": {"search": 0.2, "held_out": 0.8}}},
        "models": {name: dict(model) for name in names},
        "searches": {f"search{i}": {"method": METHODS[i % len(METHODS)]} for i in range(searches)},
        "sensitivity": {"layers_per_job": layers_per_job},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    table = {"layers": [{"name": f"layer{i}", "folder": f"layer{i}"} for i in range(layers)]}
    for name in names:
        made = folder / "results" / name / "model"
        made.mkdir(parents=True)
        for file in ("weights.safetensors", "model.json"):
            (made / file).touch()
        write_json(made / "layers.json", table)


def snakemake(folder: Path, *arguments: str) -> tuple[str, float, float]:
    """Output, processor seconds, and the largest memory in MB of any run of Snakemake so far."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", str(folder / "config.yaml")),
        *arguments,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        sys.exit(run.stdout)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return run.stdout, spent, after.ru_maxrss / 1024


def listed(output: str, kind: str) -> list[str]:
    """Files of one kind ("input", "output", "log", "benchmark") that a plan lists, with repeats."""
    lines = re.findall(rf"^    {kind}: (.+)$", output, flags=re.MULTILINE)
    return [file for line in lines for file in line.split(", ")]


def jobs_of(output: str) -> Counter:
    """Planned jobs of each rule, without the target."""
    return Counter(re.findall(r"^(?:rule|checkpoint) (?!compress)(\w+):$", output, flags=re.MULTILINE))


def finish(folder: Path, output: str) -> None:
    """Let all planned jobs look as if they had run."""
    for file in listed(output, "output"):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    snakemake(folder, "--touch", "--cores", "1", "--quiet", "all")


def one_job(folder: Path) -> float:
    """Processor seconds that Snakemake takes in a cluster job before the job's own program starts."""
    target = "cluster_layer:model=model0,layer=layer0"
    flags = ("--allowed-rules", "cluster_layer", "--force", "--nolock", "--ignore-incomplete", "--mode", "remote")
    return snakemake(folder, "--target-jobs", target, *flags, "--dry-run", "--quiet", "all")[1]


def parsing() -> tuple[float, float]:
    """Processor seconds to start Snakemake on an empty Snakefile, and on ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, 10, 100, 4, 16)
        (folder / "Snakefile").write_text("rule all:\n    shell: ''\n")
        best = []
        for snakefile in (folder / "Snakefile", ROOT / "Snakefile"):
            command = (sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--list-rules")
            command += ("--directory", name, "--configfile", str(folder / "config.yaml"))
            best.append(min(_seconds(command) for _ in range(5)))
        return best[0], best[1]


def _seconds(command: tuple[str, ...]) -> float:
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print the table of one study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--searches", type=int, default=4)
    parser.add_argument("--layers-per-job", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, *vars(arguments).values())
        output, fresh, memory = snakemake(folder, "--dry-run")
        job = one_job(folder)
        finish(folder, output)
        finished, done, _ = snakemake(folder, "--dry-run")
    if "Nothing to be done" not in finished:
        sys.exit(finished)
    jobs = jobs_of(output)
    empty, ours = parsing()
    inputs, outputs = listed(output, "input"), listed(output, "output")
    rows = [
        *((f"jobs: `{rule}`", count) for rule, count in sorted(jobs.items())),
        ("jobs in all, without `fetch_model` and `inspect_model`", sum(jobs.values())),
        ("output files", len(outputs)),
        ("log and benchmark files", len(listed(output, "log")) + len(listed(output, "benchmark"))),
        ("input files of all jobs", len(inputs)),
        ("plan of a fresh study, CPU s", f"{fresh:.1f}"),
        ("plan when all files stand, CPU s", f"{done:.1f}"),
        ("largest memory of a plan, MB", f"{memory:.0f}"),
        ("Snakemake in one cluster job, CPU s", f"{job:.2f}"),
        ("Snakemake on an empty Snakefile, CPU s", f"{empty:.2f}"),
        ("parsing our Snakefile, CPU s", f"{ours - empty:.2f}"),
    ]
    sizes = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in vars(arguments).items())
    print(f"| {sizes} | |\n|---|---|")
    for label, value in rows:
        print(f"| {label} | {value} |")


if __name__ == "__main__":
    main()
