"""The tasks: a name in the configuration, and the module that knows what its outputs mean.

Light: the Snakefile reads it while it is parsed.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wshare.errors import UserError
from wshare.names import closest

if TYPE_CHECKING:
    from wshare.tasks.task import Task


@dataclass(frozen=True)
class Row:
    """A task: its name in the configuration and in files, and the module that gives what `Task` lists.

    `counts` tells whether its quality is a count of right images.
    """

    name: str
    module: str
    counts: bool = True


TASKS = {
    row.name: row
    for row in (
        Row("classification", "wshare.tasks.classification"),
        Row("binary", "wshare.tasks.binary"),
        Row("multilabel", "wshare.tasks.multilabel", counts=False),
        Row("segmentation", "wshare.tasks.segmentation", counts=False),
        Row("regression", "wshare.tasks.regression", counts=False),
    )
}

# Of files that were made before tasks had names.
DEFAULT = "classification"


def task(name: str) -> "Task":
    """The task of this name, imported only now; UserError if there is none.

    What a network's outputs are it does not know: `task_of` does.
    """
    if name not in TASKS:
        raise UserError(f"task: {name!r}: no such task. {closest(name, TASKS)}")
    module = importlib.import_module(TASKS[name].module)
    return getattr(module, "TASK", module)


def is_count(model: Mapping[str, Any]) -> bool:
    """Whether a network's quality is a count of right images, by its settings in a configuration, as far as known."""
    # Those that are recognised are counts, but for labels that the configuration does not show.
    return not model["quality"] and (model["task"] is None or TASKS[model["task"]].counts)


def task_of(description: Mapping[str, Any], quality: Callable | None = None) -> "Task":
    """The task of a described network, by what its model.json says, or a metrics.json of it.

    Its quality may be that of a function that is named there; `quality` is the function where it cannot be imported.
    """
    found = task(description["task"])
    found = found.of(description) if hasattr(found, "of") else found
    if not description.get("quality"):
        return found
    from wshare.tasks.own_quality import with_own_quality

    return with_own_quality(found, description, quality)
