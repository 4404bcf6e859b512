"""What the formats of `rate_distortion` cost at one quality target: benchmarks/results/formats.csv.

    python benchmarks/formats.py <results folder of a model> ... --packed <folder>

Each results folder holds a finished study: its float32 network, images, weights and calibration statistics serve a
search for every format. All are allowed the divergence on search images that quality target 0.99 allows; accuracy,
which a few hundred images tell less of, chooses nothing. The packed file of each is written to
`<folder>/<seed>-<format>.safetensors`, loaded again, scored on the held-out images, and exported for the runtime that
the format is meant for: `export_bytes` are those of this file or package. Rows of other models, seeds and formats stay.
"""

import argparse
import sys
from pathlib import Path

import torch
from gather import RESULTS, measured, read

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.config.validation import complete_search, defaults
from wshare.data.images import ImageFile
from wshare.evaluation.chances import MAX_KL
from wshare.evaluation.predict import predict
from wshare.exports.table import FORMATS
from wshare.files.atomic import write_bytes
from wshare.files.sealed import read_json
from wshare.files.tables import write_table
from wshare.models.state import load_state
from wshare.packed.format import load_packed
from wshare.packed.write import pack_network
from wshare.search.artifacts import Files, read_artifacts
from wshare.search.evaluator import Evaluator
from wshare.search.methods import METHODS, packing_of
from wshare.search.recipe import realised
from wshare.search.run import run
from wshare.tasks.table import task_of

# The export that each format is meant for, and its suffix; the packed file itself serves `entropy`.
EXPORTS = {
    "entropy": None,
    "fixed": ("onnx", ".onnx"),
    "coreml": ("coreml", ".mlpackage"),
    "int8": ("onnx-qdq", ".onnx"),
    "int4": ("onnx-qdq", ".onnx"),
}
# Quality target that the divergence follows from, and the one that the searches are given.
TARGET, LOOSE = 0.99, 0.5
THREADS = 2
KEY = ("model", "seed", "format")
COLUMNS = [
    *(*KEY, "max_kl", "float32_bytes", "packed_bytes", "export", "export_bytes", "analytic"),
    *("met", "evaluations", "images", "relative_quality", "kl", "agreement", "measured"),
]


class Study:
    """A finished study of a model, as its folder holds it."""

    def __init__(self, base: Path):
        spec, self.weights = base / "model" / "model.json", base / "model" / "weights.safetensors"
        self.description = read_json(spec)
        self.task, self.load = task_of(self.description), lambda: read_model(spec, self.weights)
        self.images = {split: ImageFile(base / "images" / f"{split}.h5") for split in ("search", "held_out")}
        self.reference = {
            split: read_outputs(base / "baseline" / f"{split}.h5", part, self.description["sha256"])
            for split, part in self.images.items()
        }
        row = METHODS["rate_distortion"]
        files = Files(layer_weights=base / "weights.h5", calibration=base / "calibration.h5")
        layers = [layer["name"] for layer in read_json(base / "model" / "layers.json")["layers"]]
        made = {"model": self.description["sha256"], "images": self.images["search"].fingerprint}
        args = (self.task, self.load(), self.images["search"], layers, made)
        self.artifacts, self.method = read_artifacts(row.needs, files, *args), row.load()
        self.seed = self.artifacts.settings["importance"]["seed"]

    def searched(self, form: str) -> dict:
        """The recipe of a search for a format."""
        settings = complete_search(
            {
                "method": "rate_distortion",
                "quality_target": LOOSE,
                "confidence": None,
                "options": {"format": form, "max_kl": MAX_KL * (1 - TARGET)},
            }
        ) | {"seed": self.seed}
        images, reference = self.images["search"], self.reference["search"]
        space = self.method.prepare(self.artifacts, settings["options"], THREADS)
        held_out = len(self.images["held_out"])
        evaluator = Evaluator(self.task, self.artifacts.model, images, reference, held_out, settings, threads=THREADS)
        packing = defaults("packing") | packing_of(settings["options"])
        return run(self.method, space, self.artifacts, evaluator, settings, packing, self.description).recipe

    def measured(self, form: str, folder: Path) -> dict:
        """The row of a format; the packed file stays in the folder."""
        recipe, network = self.searched(form), self.load()
        search, float32 = self.images["search"], self.weights.stat().st_size
        found = realised(recipe, self.artifacts, form, THREADS)
        content, sizes, _ = pack_network(
            self.task, network, found, recipe["packing"], search, self.reference["search"], THREADS, float32
        )
        packed = folder / f"{self.seed}-{form}.safetensors"
        write_bytes(packed, content)
        network = self.load()
        load_state(network, load_packed(packed), str(packed))
        images, reference = self.images["held_out"], self.reference["held_out"]
        score = self.task.score(predict(network, images, THREADS), reference, images.labels)
        before = self.task.score(reference, reference, images.labels)
        return {
            "model": self.description["name"],
            "seed": self.seed,
            "format": form,
            "max_kl": f"{MAX_KL * (1 - TARGET):.3g}",
            "float32_bytes": float32,
            "packed_bytes": len(content),
            **self.exported(form, packed),
            "analytic": 32 * sizes["weights"] / sizes["analytic_bits"],
            "met": recipe["on_search_images"]["meets_target"],
            "evaluations": recipe["evaluations"],
            "images": len(images),
            "relative_quality": float(score.scores.mean() / before.scores.mean()),
            "kl": score.kl,
            "agreement": score.figures["agreement"],
            "measured": measured(),
        }

    def exported(self, form: str, packed: Path) -> dict:
        """Name and bytes of the export that a format is meant for."""
        if EXPORTS[form] is None:
            return {"export": "", "export_bytes": ""}
        name, suffix = EXPORTS[form]
        output = packed.with_suffix(suffix)
        FORMATS[name].write(packed, output, self.load(), torch.zeros(1, *self.description["input"]))
        files = [file for file in (output, *output.rglob("*")) if file.is_file()]
        return {"export": name, "export_bytes": sum(file.stat().st_size for file in files)}


def main() -> None:
    """Measure all folders and formats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=list(EXPORTS), choices=list(EXPORTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in arguments.folders:
        study = Study(folder)
        for form in arguments.formats:
            update(study.measured(form, arguments.packed))


def update(row: dict) -> None:
    """Put a row into the table in place of that of the same model, seed and format."""
    print(row, file=sys.stderr, flush=True)
    path = RESULTS / "formats.csv"
    new = {name: str(row[name]) for name in COLUMNS}
    rows = [other for other in read(path) if [other[name] for name in KEY] != [new[name] for name in KEY]]
    order = list(EXPORTS)
    rows = sorted([*rows, new], key=lambda row: (row["model"], int(row["seed"]), order.index(row["format"])))
    write_table(path, COLUMNS, rows)


if __name__ == "__main__":
    main()
