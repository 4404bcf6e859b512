"""One search, from artifacts to front, losses and recipe: the same for every method, on files or in memory."""

import math
from dataclasses import dataclass

from wshare.models.kinds.table import layer_of
from wshare.search.evaluator import Evaluator
from wshare.search.front import front_columns, front_rows, quality_columns
from wshare.search.method import Artifacts, SearchMethod
from wshare.search.recipe import VERSION

LOSSES = ["layer", "weights", "predicted", "measured", "sensitivity_scale"]


@dataclass(frozen=True)
class Searched:
    """What a search leaves: the columns and rows of front.csv, the rows of losses.csv, the content of recipe.json."""

    columns: list[str]
    front: list[dict]
    losses: list[dict]
    recipe: dict


def run(
    method: SearchMethod,
    space: object,
    artifacts: Artifacts,
    evaluator: Evaluator,
    settings: dict,
    packing: dict,
    model: dict[str, str],
) -> Searched:
    """Search, and tell what was found.

    `space` is the method's, of `artifacts`; `settings` is a search of the configuration, complete, and the seed;
    `packing` tells format and type of batch norms of the packed file, `model` its name, task and sha256.
    """
    found = method.search(space, evaluator, settings)
    shapes = {name: list(layer_of(artifacts.model, name).weight.shape) for name in artifacts.layers}
    weights = sum(map(math.prod, shapes.values()))
    columns = evaluator.task.COLUMNS
    chosen = evaluator.measured[found.chosen]
    recipe = {
        "versions": {"recipe": VERSION, "method": method.version},
        "task": model["task"],
        "model": {"name": model["name"], "sha256": model["sha256"]},
        "search_images": artifacts.images.fingerprint,
        "made_from": dict(artifacts.made_from),
        "settings": settings,
        "packing": packing,
        "artifacts": dict(artifacts.settings),
        "temperature": evaluator.temperature,
        "layers": {name: {"shape": shapes[name]} | found.layers[name] for name in artifacts.layers},
        "on_search_images": {key: chosen[key] for key in quality_columns(columns)}
        | {"measure": evaluator.task.measure(artifacts.images.labels), "meets_target": found.chosen in found.met},
        "evaluations": len(found.points),
        "images_forwarded": {"search": sum(row["images"] for row in evaluator.measured.values())}
        | found.images_forwarded,
        **found.notes,
    }
    return Searched(
        front_columns(columns, found, artifacts.layers),
        front_rows(evaluator, found, artifacts.layers, 32 * weights),
        found.losses,
        recipe,
    )
