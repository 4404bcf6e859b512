"""Networks that a function of the user makes."""

import inspect
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models.description import Fetched, finish
from wshare.models.functions import function_of
from wshare.models.state import shared_memory, tie


def fetch(settings: dict, cache: Path) -> Fetched:
    """The network, weights included, that the function `architecture` ("module:function") returns.

    The working directory is on the import path; `arguments` go to the function. `preprocessing` must give at least
    `crop`, the side of the input; what it leaves out is neutral.
    """
    name = settings["architecture"]
    arguments = dict(settings.get("arguments") or {})
    return finish(
        build(name, arguments),
        settings,
        builder={"kind": "python", "name": name, "arguments": arguments},
        preprocessing={},
        origin=f"python {name}",
    )


def build(name: str, arguments: dict) -> nn.Module:
    """What the function "module:function" returns for `arguments`, parameters over one memory tied.

    UserError unless it is an nn.Module whose parameters can change one by one.
    """
    function = function_of(name, "architecture")
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(f"arguments: {arguments}: {name} does not take them: {error}") from None
    module = function(**arguments)
    if not isinstance(module, nn.Module):
        raise UserError(f"architecture: {name} returned a {type(module).__name__}, not an nn.Module")
    tie(module, shared_memory(module, f"architecture: {name}"))
    return module


def from_weights(name: str, settings: dict, weights: Mapping[str, Tensor]) -> tuple[nn.Module, dict, dict]:
    """The network that weights are for, not yet filled with them; the arguments that build it; its preprocessing."""
    arguments = dict(settings.get("arguments") or {})
    return build(name, arguments), arguments, {}
