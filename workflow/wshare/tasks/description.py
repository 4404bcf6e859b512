"""A network described as its task sees it: the last step before model.json is written."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models.description import Fetched
from wshare.models.outputs import TOLD, chosen_outputs, ends_in_sigmoid, joined, outputs_of, structure, told_outputs
from wshare.tasks.table import TASKS, task

_log = logging.getLogger(__name__)


def described(fetched: Fetched, settings: dict) -> Fetched:
    """The network with `task` in its specification, and what that task says of its outputs.

    `settings` are those of the model in the configuration; they may name the task. UserError if there is no such task,
    or the network's outputs are not that task's.
    """
    spec = fetched.spec
    # Of a black image and of noise: what two such outputs have in common is the network's nature.
    noise = torch.randn(1, *spec["input"], generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.zeros_like(noise), noise])
    known = settings | {"categories": spec.get("categories")}
    return replace(fetched, spec=spec | description_of(fetched.module, images, known, spec["name"]))


def description_of(
    model: nn.Module, images: Tensor, settings: Mapping[str, object], name: str, labels: np.ndarray | None = None
) -> dict:
    """What model.json says of the outputs of two images [2, C, H, W]: task, `structure` if any, and the task's own.

    `settings` may name a `quality` of the user's own, and the `task`; without, that is recognised where outputs and
    labels leave no doubt, and told. UserError, which opens with `name`, if it cannot be, or the outputs are not those
    of the task.
    """
    found = outputs_of(model, images, name)
    chosen = settings.get("task")
    several = getattr(task(chosen), "SEVERAL", False) if chosen else False
    outputs = chosen_outputs(found, several, name)
    tensor = joined([found[output.path] for output in outputs])
    sigmoid = len(outputs) == 1 and ends_in_sigmoid(model, images[:1], outputs[0].path)
    if not chosen:
        chosen = _recognised(tuple(tensor.shape), sigmoid, labels, name)
        _log.info("%s: gives %s for 2 images: taken for the task %s", name, told_outputs({"": tensor}), chosen)
    if list(found) != [""]:
        taken = {output.path: found[output.path] for output in outputs}
        _log.info("%s: gives %s; taken: %s", name, told_outputs(found), told_outputs(taken))
    known, quality = {**settings, "sigmoid": sigmoid}, settings.get("quality")
    description = task(chosen).describe(tensor.float().numpy(force=True), known, name)
    if told := TOLD.get(description.get("outputs")):
        _log.info("%s: %s", name, told)
    return {"task": chosen} | ({"quality": quality} if quality else {}) | structure(outputs) | description


def _recognised(shape: tuple[int, ...], sigmoid: bool, labels: np.ndarray | None, name: str) -> str:
    """The task of outputs of this shape for two images; UserError if several are possible."""
    numbers = None if labels is None else labels.shape[1:]
    nought_or_one = labels is not None and bool(np.isin(labels, (0, 1)).all())
    if len(shape) == 2 and shape[1] >= 2 and (labels is not None or not sigmoid):
        return "multilabel" if numbers == shape[1:] and nought_or_one else "classification"
    if shape in ((2,), (2, 1)) and (sigmoid or (nought_or_one and labels.size == len(labels))):
        return "binary"
    meant = {1: ("binary", "regression"), 2: ("binary", "regression"), 4: ("segmentation", "regression")}
    if len(shape) == 2 and shape[1] >= 2:
        meant[2] = ("multilabel", "classification", "regression")
    possible = " or ".join(meant.get(len(shape), ("regression",)))
    given = "gives one output an image, " if shape in ((2,), (2, 1)) else "gives "
    raise UserError(
        f"{name}: {given}{list(shape)} for 2 images, which does not tell its task; say which: {possible} (task= in "
        f"Python, --task, or the model's key task; there are {', '.join(TASKS)})"
    )
