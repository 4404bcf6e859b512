"""Time and memory of our clustering, k = 1 to 256 in one sweep, and of kmeans1d at k = 256 alone.

    PYTHONPATH=workflow .venv-peers/bin/python benchmarks/clustering.py --results results/efficientnet_lite0 \
        --output benchmarks/results/clustering.csv [--only CASE]

`--results` is the folder that the study config/efficientnet_lite0.yaml leaves. Each case runs in its own process;
`--only` adds to the table. Compilation by numba is excluded: a small layer is clustered first. Peak memory is in 10^6
bytes, that of the process less what it was after this warm-up; the layer's own weights count. The layers of ResNet50
and VGG16 hold seeded normal weights, since only their number matters. `ratio` of kmeans1d is its CPU time over that
of our sweep of all k.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from gather import measured

from wshare.files.tables import write_table
from wshare.quantize.kmeans import sweep

COLUMNS = ["case", "layers", "weights", "k", "wall_seconds", "cpu_seconds", "peak_mb", "ratio", "measured"]
K = 256


def lite0_all(weights: Path) -> list[np.ndarray]:
    """All layers of EfficientNet-Lite0, the largest last."""
    from safetensors.numpy import load_file

    arrays = [array for array in load_file(weights).values() if array.ndim > 1]
    return sorted(arrays, key=lambda array: array.size)


def lite0_classifier(weights: Path) -> list[np.ndarray]:
    """The largest layer of EfficientNet-Lite0."""
    return lite0_all(weights)[-1:]


def resnet50_largest(weights: Path) -> list[np.ndarray]:
    """As many weights as the largest layer of ResNet50 has."""
    return [_normal(512, 512, 3, 3)]


def vgg16_dense(weights: Path) -> list[np.ndarray]:
    """As many weights as the first dense layer of VGG16 has."""
    return [_normal(4096, 25088)]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _sweep(layer: np.ndarray) -> None:
    sweep(layer, k_max=K)


def _kmeans1d(layer: np.ndarray) -> None:
    import kmeans1d

    kmeans1d.cluster(layer.ravel(), K)


CASES = {
    "lite0_all": (lite0_all, _sweep),
    "lite0_classifier": (lite0_classifier, _sweep),
    "resnet50_largest": (resnet50_largest, _sweep),
    "vgg16_dense": (vgg16_dense, _sweep),
    "kmeans1d_classifier": (lite0_classifier, _kmeans1d),
}


def measure(case: str, weights: Path) -> dict:
    """One row of the table, measured in this process."""
    load, cluster = CASES[case]
    cluster(_normal(20_000)[: 20_000 if cluster is _sweep else 2 * K])
    before = _peak()
    layers = load(weights)
    wall, cpu = time.perf_counter(), time.process_time()
    for layer in layers:
        cluster(layer)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row = {"case": case, "layers": len(layers), "weights": sum(layer.size for layer in layers)}
    row |= {"k": f"1-{K}" if cluster is _sweep else K, "wall_seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}
    return row | {"peak_mb": round(_peak() - before)}


def _peak() -> float:
    """Largest memory of this process so far, in 10^6 bytes; macOS gives bytes where Linux gives KiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    """Run each case in a process of its own and write the table."""
    arguments = _arguments()
    weights = arguments.results / "model/weights.safetensors"
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, weights)))
        return
    rows = _read(arguments.output)
    for case in arguments.only or CASES:
        command = [sys.executable, __file__, "--results", str(arguments.results), "--measure", case]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[case] = json.loads(done.stdout) | {"measured": measured()}
        print(*rows[case].values(), flush=True)
    if {"kmeans1d_classifier", "lite0_classifier"} <= rows.keys():
        slow, ours = (float(rows[case]["cpu_seconds"]) for case in ("kmeans1d_classifier", "lite0_classifier"))
        rows["kmeans1d_classifier"]["ratio"] = round(slow / ours)
    write_table(arguments.output, COLUMNS, [rows[case] for case in CASES if case in rows])
    print(f"{arguments.output}: compilation by numba excluded")


def _read(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of the finished study")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/clustering.csv"))
    parser.add_argument("--only", action="append", choices=CASES, help="run this case alone; may be repeated")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
