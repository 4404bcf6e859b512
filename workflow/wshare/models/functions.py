"""Functions of the user, by the names that a configuration gives them."""

import importlib
import os
import sys
from collections.abc import Callable

from wshare.errors import UserError
from wshare.names import closest


def function_of(name: str, key: str) -> Callable[..., object]:
    """The function "module:function", the working directory on the import path; UserError names the `key`."""
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"{key}: {name!r}: must be module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module fails to import is told by its traceback.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{key}: {name!r}: no module {error.name!r} in the working directory {os.getcwd()} or installed"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{key}: {name!r}: no function {function_name!r} there. {closest(function_name, known)}")
    return function
