"""A network described as its task sees it: the last step before model.json is written."""

from dataclasses import replace

import torch

from wshare.models.description import Fetched
from wshare.tasks.table import DEFAULT, task


def described(fetched: Fetched, settings: dict) -> Fetched:
    """The network with `task` in its specification, and what that task says of its outputs.

    `settings` are those of the model in the configuration; they may name the task. UserError if there is no such task,
    or the network's outputs are not that task's.
    """
    spec, name = fetched.spec, settings.get("task") or DEFAULT
    with torch.no_grad():
        # Of two black images.
        outputs = fetched.module(torch.zeros(2, *spec["input"])).float().numpy()
    known = settings | {"categories": spec.get("categories")}
    return replace(fetched, spec=spec | {"task": name} | task(name).describe(outputs, known, spec["name"]))
