"""What a report is made from: the files of a finished run."""

from dataclasses import dataclass
from pathlib import Path

from wshare.artifacts.front import layer_columns
from wshare.artifacts.timings import Usage, of_search, usage_by_stage
from wshare.files.hdf5 import get_text, open_h5
from wshare.files.sealed import check_origin, check_sha256, read_json
from wshare.files.tables import read_sealed
from wshare.packed.format import Sizes, read_layout


@dataclass(frozen=True)
class ModelReportFiles:
    """All that the report of a model shows.

    The lists from `metrics` to `packed` have a file for each search, in one order. `benchmarks` are those of all jobs
    that led to these results; `sensitivity` is None where no search goes by it.
    """

    spec: Path
    weights: Path
    layers: Path
    held_out_images: Path
    baseline: Path
    metrics: list[Path]
    timings: list[Path]
    recipes: list[Path]
    sizes: list[Path]
    fronts: list[Path]
    losses: list[Path]
    predictions: list[Path]
    packed: list[Path]
    benchmarks: list[Path]
    sensitivity: Path | None = None


@dataclass(frozen=True)
class Search:
    """One search of a model: its files as they were read.

    `front` has a row for each combination measured, `losses` one for each layer that was probed alone; `packed` is the
    packed file.
    """

    name: str
    packed: Path
    metrics: dict
    recipe: dict
    sizes: dict
    front: list[dict[str, str]]
    losses: list[dict[str, str]]
    predictions: list[dict[str, str]]
    layout: Sizes
    usage: dict[str, Usage]

    @property
    def method(self) -> str:
        """Its method's name in the configuration."""
        return self.recipe["settings"]["method"]

    def ks(self, row: dict[str, str]) -> dict[str, str]:
        """Number of shared values, or "dense", of each layer in a row of the front."""
        return layer_columns(row)


@dataclass(frozen=True)
class Model:
    """A model's results; `sensitivity` is empty where no search profiles layers."""

    name: str
    spec: dict
    weights: Path
    held_out_images: Path
    layers: list[dict]
    parameters: list[dict]
    baseline: dict
    sensitivity: list[dict[str, str]]
    searches: list[Search]


def read_model_results(name: str, files: ModelReportFiles) -> Model:
    """Everything of a model that a report shows; UserError unless all files were made from one another."""
    spec, table, baseline = (read_json(path) for path in (files.spec, files.layers, files.baseline))
    check_sha256(files.weights, spec["sha256"], files.spec)
    check_origin(files.layers, table, {"model": spec["sha256"]})
    with open_h5(files.held_out_images, "images") as images:
        held_out = get_text(images.attrs, "fingerprint")
    check_origin(files.baseline, baseline["sha256"], {"model": spec["sha256"], "held_out_images": held_out})
    searched = {"model": spec["sha256"], "images": baseline["sha256"]["search_images"]}
    searches = [_read_search(files, place, baseline["sha256"]) for place in range(len(files.metrics))]
    profiles = []
    if files.sensitivity is not None:
        profiles, found = read_sealed(files.sensitivity)
        for search in searches:
            # A search by profiles names the clusters that they were made from, as the profiles do.
            shared = {name: value for name, value in search.recipe["made_from"].items() if name in found}
            check_origin(files.sensitivity, found, searched | shared)
    return Model(
        name=name,
        spec=spec,
        weights=files.weights,
        held_out_images=files.held_out_images,
        layers=table["layers"],
        parameters=table["parameters"],
        baseline=baseline,
        sensitivity=profiles,
        searches=searches,
    )


def _read_search(files: ModelReportFiles, place: int, baseline: dict[str, str]) -> Search:
    """Files of the search at a place, all of them made from one another and from what `baseline` names by hashes."""
    metrics, recipe_file, packed = files.metrics[place], files.recipes[place], files.packed[place]
    verdict, recipe, sizes = read_json(metrics), read_json(recipe_file), read_json(files.sizes[place])
    for name, path in (("recipe", recipe_file), ("packed", packed)):
        check_sha256(path, sizes[name], files.sizes[place])
    check_origin(metrics, verdict["sha256"], baseline | {name: sizes[name] for name in ("recipe", "packed")})
    timings = read_json(files.timings[place])
    check_origin(files.timings[place], timings["sha256"], {"packed": sizes["packed"]})
    searched = {"model": baseline["model"], "images": baseline["search_images"]}
    shown = {"packed": sizes["packed"], "images": baseline["held_out_images"]}
    return Search(
        name=verdict["search"],
        packed=packed,
        metrics=verdict,
        recipe=recipe,
        sizes=sizes,
        front=_rows(files.fronts[place], searched),
        losses=_rows(files.losses[place], searched),
        predictions=_rows(files.predictions[place], shown),
        layout=read_layout(packed),
        usage=usage_by_stage(of_search(files.benchmarks, verdict["search"], timings["seconds"])),
    )


def _rows(path: Path, made_from: dict[str, str]) -> list[dict[str, str]]:
    rows, found = read_sealed(path)
    check_origin(path, found, made_from)
    return rows
