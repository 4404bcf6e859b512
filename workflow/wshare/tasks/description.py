"""What a network's outputs are, added to its description."""

import dataclasses

import torch

from wshare.errors import UserError
from wshare.models.description import Fetched


def described(fetched: Fetched, settings: dict) -> Fetched:
    """The network with a description that tells its task and classes."""
    with torch.no_grad():
        outputs = fetched.module(torch.zeros(2, *fetched.spec["input"]))
    name = fetched.spec["name"]
    if outputs.ndim != 2:
        raise UserError(
            f"{name}: gives {list(outputs.shape)} for 2 images, not a tensor [2, classes]; only classifiers can be used"
        )
    classes = outputs.shape[1]
    if settings.get("classes") not in (None, classes):
        raise UserError(f"classes: {settings['classes']}: {name} gives {classes}; correct or remove the key")
    categories = fetched.spec["categories"]
    told = {"task": settings["task"], "classes": classes}
    told["categories"] = categories if categories and len(categories) == classes else None
    return dataclasses.replace(fetched, spec=fetched.spec | told)
