"""How much of a result is chance of the split: EfficientNet-Lite0 on several splits of the same images.

    python benchmarks/splits.py --images <folder by wnid> [--folder results/splits] [--seeds 0 1 2 3 4] [--cores 2]

Runs benchmarks/splits.yaml for each seed in a folder of its own below --folder, and writes
benchmarks/results/splits.csv anew after each, a row a seed and search. Run it again and it goes on where it stopped.
`python benchmarks/tables.py` then renews README.md and docs/benchmarks.md.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from gather import RESULTS, ROOT, of_model, update

STUDY = ROOT / "benchmarks" / "splits.yaml"
TABLE = RESULTS / "splits.csv"


def command(folder: Path, images: Path, seed: int, cores: int) -> list[str]:
    """The command that runs the study with one seed in a folder."""
    return of_study(STUDY, folder, cores, f"image_folder={images.resolve()}", f"seed={seed}")


def of_study(study: Path, folder: Path, cores: int, *config: str) -> list[str]:
    """The command that runs a configuration in a folder, with some of its keys changed."""
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", str(study)),
        *("--config", *config, "--cores", str(cores), "--quiet", "rules"),
    ]


def gather(folders: list[Path], table: Path) -> list[dict]:
    """Rows of all searches that are finished in the folders, which are also written into the table."""
    rows = [row for folder in folders for model in sorted(folder.glob("results/*/")) for row in of_model(model)]
    update(table, rows)
    return rows


def main() -> None:
    """Run what is missing, and gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images by wnid")
    parser.add_argument("--folder", type=Path, default=Path("results/splits"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    folders = []
    for place, seed in enumerate(arguments.seeds, 1):
        print(f"split {place} of {len(arguments.seeds)}: seed {seed}", flush=True)
        folder, started = arguments.folder / f"seed{seed}", time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(command(folder, arguments.images, seed, arguments.cores), check=True)
        folders.append(folder)
        for row in gather(folders, TABLE):
            if row["seed"] == seed:
                print(f"  {row['search']}: {row['on_disk']:.2f}x, {row['relative_quality']:.4f}, {row['verdict']}")
        print(f"  {time.monotonic() - started:.0f} s; {TABLE} holds {place} of {len(arguments.seeds)}", flush=True)
    print("next: python benchmarks/tables.py")


if __name__ == "__main__":
    main()
