"""Networks that a function of the user makes."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models.description import Fetched, finish
from wshare.models.state import shared_memory, tie
from wshare.names import closest


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
    function = _function(name)
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


def _function(name: str) -> Callable[..., object]:
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"architecture: {name!r}: must be module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module fails to import is told by its traceback.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"architecture: {name!r}: no module {error.name!r} in the working directory {os.getcwd()} or installed"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"architecture: {name!r}: no function {function_name!r} there. {closest(function_name, known)}")
    return function
