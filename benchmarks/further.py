"""What further images without labels are worth to a search that has few with labels.

    python benchmarks/further.py --images <folder by wnid> [--folder results/further] [--seeds 0 1 2] [--cores 2]

Deals the images out for each seed: half of them are held out, 100 are search images, and the others are further images
without labels, or search images, too. Runs benchmarks/further.yaml for each seed in a folder of its own below --folder,
and writes benchmarks/results/further.csv anew after each, a row a seed and model. Run it again and it goes on where it
stopped. `python benchmarks/tables.py` then renews docs/benchmarks.md.
"""

import argparse
import os
import random
import subprocess
from pathlib import Path

from gather import RESULTS, ROOT, of_model, update
from splits import of_study

STUDY = ROOT / "benchmarks" / "further.yaml"
FEW = 100


def deal(images: Path, folder: Path, seed: int) -> None:
    """Link the images into the folders that the study names."""
    paths = sorted(path for path in images.glob("*/*") if path.is_file())
    random.Random(seed).shuffle(paths)
    half = len(paths) // 2
    parts = {"held_out": paths[:half], "few": paths[half : half + FEW], "further": paths[half + FEW :]}
    parts["few_and_further"] = parts["few"] + parts["further"]
    for name, part in parts.items():
        for path in part:
            link = folder / name / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                os.symlink(path.resolve(), link)


def main() -> None:
    """Run what is missing, and gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images by wnid")
    parser.add_argument("--folder", type=Path, default=Path("results/further"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        folder = arguments.folder / f"seed{seed}"
        deal(arguments.images, folder, seed)
        subprocess.run(of_study(STUDY, folder, arguments.cores, f"seed={seed}"), check=True)
        rows = [row for model in sorted(folder.glob("results/*/")) for row in of_model(model)]
        update(RESULTS / "further.csv", rows)
        for row in rows:
            print(f"seed {seed}, {row['model']}: {row['on_disk']:.2f}x on disk, {row['kl']:.4f} nats", flush=True)
    print("next: python benchmarks/tables.py")


if __name__ == "__main__":
    main()
