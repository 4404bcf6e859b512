"""What a report is made from: the files of a finished run."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from wshare.artifacts.timings import Usage, jobs_of, usage_by_stage
from wshare.errors import FormatError
from wshare.files.hdf5 import get_text, open_h5
from wshare.files.journal import PRICE_NAMES, read_journal
from wshare.files.sealed import check_origin, check_sha256, read_json
from wshare.files.tables import PREDICTIONS, read_sealed
from wshare.packed.format import Sizes, read_layout

# Columns of front.csv that are no layer.
QUALITY = (
    *("slope", "bits", "compression_rate_analytic", "images", "top1", "relative_quality", "low"),
    *("expected", "expected_low", "kl", "kl_high", "agreement", "pareto", "chosen"),
)


@dataclass(frozen=True)
class Search:
    """One search of a model: its files as they were read.

    `front` has a row for each combination measured, `losses` one for each layer (empty for other methods than
    `rate_distortion`). `trace` holds positions in `front` in the order of measurement; None if the journal is gone.
    """

    name: str
    folder: Path
    metrics: dict
    recipe: dict
    sizes: dict
    front: list[dict[str, str]]
    losses: list[dict[str, str]]
    predictions: list[dict[str, str]]
    trace: list[int] | None
    layout: Sizes
    usage: dict[str, Usage]

    @property
    def method(self) -> str:
        """Its method's name in the configuration."""
        return self.recipe["settings"]["method"]

    @property
    def packed(self) -> Path:
        """The packed file."""
        return self.folder / "packed.safetensors"

    def ks(self, row: dict[str, str]) -> dict[str, str]:
        """Number of shared values, or "dense", of each layer in a row of the front."""
        return {column: value for column, value in row.items() if column not in QUALITY}


@dataclass(frozen=True)
class Model:
    """A model's results; `sensitivity` is empty where no search profiles layers."""

    name: str
    folder: Path
    spec: dict
    layers: list[dict]
    parameters: list[dict]
    baseline: dict
    sensitivity: list[dict[str, str]]
    searches: list[Search]


def read_model_results(name: str, metrics: list[Path], layers_per_job: int) -> Model:
    """Everything under results/<model>/ that a report shows; `metrics` are its metrics.json, one a search."""
    folder = metrics[0].parents[2]
    names = ("model/model.json", "model/layers.json", "baseline/metrics.json")
    described, listed, measured = (folder / file for file in names)
    spec, table, baseline = (read_json(path) for path in (described, listed, measured))
    check_sha256(folder / "model" / "weights.safetensors", spec["sha256"], described)
    check_origin(listed, table, {"model": spec["sha256"]})
    with open_h5(folder / "images" / "held_out.h5", "images") as images:
        held_out = get_text(images.attrs, "fingerprint")
    check_origin(measured, baseline["sha256"], {"model": spec["sha256"], "held_out_images": held_out})
    searched = {"model": spec["sha256"], "images": baseline["sha256"]["search_images"]}
    jobs = jobs_of([layer["folder"] for layer in table["layers"]], layers_per_job)
    searches = [_read_search(path, folder / "benchmarks", jobs, baseline["sha256"]) for path in metrics]
    # All searches that go by profiles go by the same ones.
    profiled = [search.recipe["made_from"] for search in searches if search.method != "rate_distortion"]
    return Model(
        name=name,
        folder=folder,
        spec=spec,
        layers=table["layers"],
        parameters=table["parameters"],
        baseline=baseline,
        sensitivity=_rows(folder / "sensitivity.csv", searched | profiled[0]) if profiled else [],
        searches=searches,
    )


def _read_search(metrics: Path, benchmarks: Path, jobs: dict[str, list[str]], baseline: dict[str, str]) -> Search:
    """One search's files, all of them made from one another and from what `baseline` names by hashes."""
    folder = metrics.parent
    verdict, recipe = read_json(metrics), read_json(folder / "recipe.json")
    sizes, packed = read_json(folder / "sizes.json"), folder / "packed.safetensors"
    for name, path in (("recipe", folder / "recipe.json"), ("packed", packed)):
        check_sha256(path, sizes[name], folder / "sizes.json")
    check_origin(metrics, verdict["sha256"], baseline | {name: sizes[name] for name in ("recipe", "packed")})
    searched = {"model": baseline["model"], "images": baseline["search_images"]}
    front = _rows(folder / "front.csv", searched)
    prices = recipe["settings"]["method"] == "rate_distortion"
    return Search(
        name=folder.name,
        folder=folder,
        metrics=verdict,
        recipe=recipe,
        sizes=sizes,
        front=front,
        losses=_rows(folder / "losses.csv", searched) if prices else [],
        predictions=_rows(
            folder / "predictions.csv", {"packed": sizes["packed"], "images": baseline["held_out_images"]}, PREDICTIONS
        ),
        trace=_trace(folder / "journal.jsonl", front, recipe),
        layout=read_layout(packed),
        # An earlier report's own time is no cost of the result.
        usage={
            stage: used
            for stage, used in usage_by_stage(benchmarks, folder.name, {} if prices else jobs).items()
            if stage != "report_model"
        },
    )


def _trace(journal: Path, front: list[dict[str, str]], recipe: dict) -> list[int] | None:
    """Positions in the front in the order of measurement; a price is known by itself, a combination by its ks."""
    if not journal.exists():
        return None
    keys = list(read_journal(journal))
    if recipe["settings"]["method"] == "rate_distortion":
        places = {float(row["slope"]): place for place, row in enumerate(front)}
        # What was measured in the other precision, before or after, is none of the front. Older recipes do not tell.
        kept = PRICE_NAMES[recipe.get("precision", "float32")]
        order = [places.get(key[1]) for key in keys if key[0] == kept]
    else:
        ks = [tuple(value for column, value in row.items() if column not in QUALITY) for row in front]
        places = {combination: place for place, combination in enumerate(ks)}
        order = [places.get(tuple("dense" if k is None else str(k) for k in key)) for key in keys]
    if sorted(order, key=lambda place: -1 if place is None else place) != list(range(len(front))):
        both = shlex.join([str(journal), str(journal.with_name("front.csv"))])
        raise FormatError(
            f"{journal}: holds other measurements than front.csv; remove both, to measure anew, with: rm {both}"
        )
    return order


def _rows(path: Path, made_from: dict[str, str], columns: list[str] | None = None) -> list[dict[str, str]]:
    rows, found = read_sealed(path, columns)
    check_origin(path, found, made_from)
    return rows
