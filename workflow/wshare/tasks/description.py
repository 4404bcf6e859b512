"""A network described as its task sees it: the last step before model.json is written."""

import logging
from dataclasses import replace

import torch

from wshare.models.description import Fetched
from wshare.models.outputs import TOLD, ends_in_sigmoid
from wshare.tasks.table import DEFAULT, task

_log = logging.getLogger(__name__)


def described(fetched: Fetched, settings: dict) -> Fetched:
    """The network with `task` in its specification, and what that task says of its outputs.

    `settings` are those of the model in the configuration; they may name the task. UserError if there is no such task,
    or the network's outputs are not that task's.
    """
    spec, name = fetched.spec, settings.get("task") or DEFAULT
    with torch.no_grad():
        # Of a black image and of noise: what two such outputs have in common is the network's nature.
        noise = torch.randn(1, *spec["input"], generator=torch.Generator().manual_seed(0))
        outputs = fetched.module(torch.cat([torch.zeros_like(noise), noise])).float().numpy()
    known = settings | {"categories": spec.get("categories"), "sigmoid": ends_in_sigmoid(fetched.module, noise)}
    found = task(name).describe(outputs, known, spec["name"])
    if told := TOLD.get(found.get("outputs")):
        _log.info("%s: %s", spec["name"], told)
    return replace(fetched, spec=spec | {"task": name} | found)
