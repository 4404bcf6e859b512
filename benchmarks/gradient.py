"""What gradient calibration takes off the divergence, by the number of images that teach it.

    python benchmarks/gradient.py <results folder of a model>=<search> ...

Each folder holds a finished search by `rate_distortion` with its search and held-out images. Its layers are quantised
at the search's slope, by the statistics of all search images, and then taught by the first 100, 200, ... of these,
one, four and sixteen times over. Divergences are those on the held-out images, which teach and choose nothing. Rows of
benchmarks/results/gradient_images.csv of other folders stay.
"""

import argparse
from pathlib import Path

import torch
from gather import RESULTS, measured, read
from threadpoolctl import threadpool_limits

from wshare.artifacts.calibration import read_calibration
from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.artifacts.weights import read_fisher
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json
from wshare.files.tables import write_table
from wshare.models.folding import folded_norms
from wshare.models.layers import replaced
from wshare.quantize.layer import Options
from wshare.search.rate_distortion.gradient import calibrated
from wshare.search.rate_distortion.network import Network
from wshare.search.rate_distortion.search import EPOCHS
from wshare.tasks.table import task_of
from wshare.tasks.task import fitted

COUNTS = (100, 200, 400, 800, 1500)
THREADS = 2


def rows_of(folder: Path, search: str, passes_of: tuple[int, ...], version: str) -> list[dict]:
    """A row for each number of images that the folder has, and of passes."""
    spec = folder / "model" / "model.json"
    description, recipe = read_json(spec), read_json(folder / "search" / search / "recipe.json")
    model, task = read_model(spec, spec.with_name("weights.safetensors"), torch.device("cpu")), task_of(description)
    images, held_out = (ImageFile(folder / "images" / f"{name}.h5") for name in ("search", "held_out"))
    told, reference = (
        read_outputs(folder / "baseline" / f"{name}.h5", part, description["sha256"])
        for name, part in (("search", images), ("held_out", held_out))
    )
    fisher = {name: value for name, value in read_fisher(folder / "weights.h5").items() if name in recipe["layers"]}
    statistics = read_calibration(folder / "calibration.h5", list(fisher)).together()
    network = Network.of(model, fisher, statistics, folded_norms(model, list(fisher), images.batch(0)[:2]))
    layers = network.quantised(recipe["layers"], Options(), THREADS)

    def divergence(own: dict) -> float:
        with replaced(model, network.compressed(own).tensors()):
            return task.score(predict(model, held_out, THREADS), reference, None).kl

    rows, before = [], divergence(layers)
    for count in (count for count in COUNTS if count <= len(images)):
        for passes in passes_of:
            few, seed = images.part(0, count), recipe["settings"]["seed"]
            after = divergence(calibrated(fitted(task, told), model, network, layers, few, told[:count], passes, seed))
            print(f"{folder}: {count} images, {passes} passes: {before:.5f} to {after:.5f} nats", flush=True)
            rows.append(
                {"model": folder.name, "seed": seed, "images": count, "passes": passes}
                | {"kl_before": f"{before:.5g}", "kl_after": f"{after:.5g}", "measured": version}
            )
    return rows


def main() -> None:
    """Measure all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--passes", type=int, nargs="+", default=EPOCHS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    version, path = measured(), RESULTS / "gradient_images.csv"
    with threadpool_limits(1):
        rows = [row for each in arguments.folders for row in rows_of(*_place(each), arguments.passes, version)]
    new = {(row["model"], str(row["seed"])) for row in rows}
    kept = [row for row in read(path) if (row["model"], row["seed"]) not in new]
    write_table(path, list(rows[0]), [*kept, *rows])


def _place(text: str) -> tuple[Path, str]:
    folder, _, search = text.rpartition("=")
    return Path(folder), search


if __name__ == "__main__":
    main()
