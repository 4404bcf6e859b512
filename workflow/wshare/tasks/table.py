"""The tasks: a name in the configuration, and the module that knows what its outputs mean.

Light: the Snakefile reads it while it is parsed.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wshare.errors import UserError
from wshare.names import closest

if TYPE_CHECKING:
    from wshare.tasks.task import Task


@dataclass(frozen=True)
class Row:
    """A task: its name in the configuration and in files, and the module that gives what `Task` lists."""

    name: str
    module: str


TASKS = {row.name: row for row in (Row("classification", "wshare.tasks.classification"),)}

# Of a network whose settings name none.
DEFAULT = "classification"


def task(name: str) -> "Task":
    """The module of a task, imported only now; UserError if there is none of that name."""
    if name not in TASKS:
        raise UserError(f"task: {name!r}: no such task. {closest(name, TASKS)}")
    return importlib.import_module(TASKS[name].module)
