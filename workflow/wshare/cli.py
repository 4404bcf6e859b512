"""`wshare <command> --flag value ...`: commands for users, and the stages as the rules call them."""

import argparse
import gc
import importlib
import inspect
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, get_args, get_origin

from wshare.errors import UserError
from wshare.version import __version__

POSITIONAL = inspect.Parameter.POSITIONAL_ONLY
STAGES = (
    "fetch_model",
    "train_model",
    "prepare_images",
    "prepare_calibration",
    "evaluate_dense",
    "inspect_model",
    "extract_weights",
    "cluster_layer",
    "profile_layers",
    "gather_sensitivity",
    "measure_inputs",
    "search",
    "pack_model",
    "evaluate_packed",
    "summarise",
    "report_model",
    "report_study",
)
# What a user calls, and no rule does; the lines are the first ones of the functions' docstrings.
COMMANDS = {
    "compress": "Compress a network on a folder of images, without retraining; prints sizes and the verdict.",
    "inspect": "List the layers of a packed file: shape, number of shared values, bits and bytes, and totals.",
    "apply": "Apply a recipe again, without a search: to the same network, or to another checkpoint; prints the sizes.",
    "evaluate": "Print the quality of a packed file on a folder of images, against the float32 network, as JSON.",
    "export": "Write a packed file in the format of another runtime.",
    "compare": "Hold two packed files, or two searches, side by side: sizes, each layer's k and bits, and quality.",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command or stage; returns the exit code. Bad input ends in one line on standard error and 1."""
    # Batches run side by side on our own threads: libraries that start theirs too would fight for the
    # cores, and make sums depend on their number. Set before numpy and torch are imported.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[variable] = "1"
    arguments = sys.argv[1:] if arguments is None else arguments
    program = _program()
    command = program.parse_args(arguments[:1]).command
    if command not in (*COMMANDS, *STAGES):
        program.error(f"{command}: no such command; `wshare --help` lists them")
    try:
        package = "commands" if command in COMMANDS else "stages"
        with _no_garbage_collected():
            function = getattr(importlib.import_module(f"wshare.{package}.{command}"), command)
        given = vars(_parser(command, function).parse_args(arguments[1:]))
        positional, named = _values(function, given)
        # The library prints nothing itself. What a command prints may be read by a program.
        stream = sys.stderr if command in COMMANDS else sys.stdout
        logging.basicConfig(stream=stream, format="%(message)s", force=True)
        logging.getLogger("wshare").setLevel(logging.INFO)
        function(*positional, **named)
    except (UserError, OSError) as error:
        print(f"wshare {command}: error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        # torch's, known by its name: torch is not imported here.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        reason = str(error).partition(". ")[0]
        print(f"wshare {command}: error: {reason}; run it with a profile that gives it no gpu", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Imports make many objects and no garbage: looking for it takes a tenth of the time that torch's import does."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _program() -> argparse.ArgumentParser:
    """Parser of the command alone; its help lists them all."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    stages = textwrap.fill(", ".join(STAGES), 100, initial_indent="  ", subsequent_indent="  ")
    parser = argparse.ArgumentParser(
        "wshare",
        usage="wshare <command> [--flag value ...]",
        description="Weight sharing for trained convolutional networks, without retraining.\n\ncommands:\n"
        + "\n".join(lines),
        epilog=f"`wshare <command> --help` tells its flags.\n\nstages, which the workflow's rules call:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wshare {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    return parser


@dataclass(frozen=True)
class _Flag:
    """What a parameter of a function, or a field of one that is a dataclass, says of its flag.

    One that is `bare` may be given without a value where it names files that may be left out.
    """

    name: str
    annotation: object
    default: object
    positional: bool = False
    bare: bool = False


def _flags(function: Callable) -> list[_Flag]:
    """Flags of a function's parameters, in order; each field of a parameter that is a dataclass has its own."""
    flags = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if is_dataclass(kind):
            flags += [_Flag(field.name, field.type, _default(field), bare=True) for field in fields(kind)]
        else:
            flags.append(_Flag(name, kind, parameter.default, parameter.kind is POSITIONAL))
    return flags


def _default(field: Field) -> object:
    """Default of a field, `Parameter.empty` for one that has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _values(function: Callable, given: dict) -> tuple[list, dict]:
    """Positional and named arguments of a function, from the values of its flags."""
    positional, named = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if is_dataclass(kind):
            named[name] = kind(**{field.name: given[field.name] for field in fields(kind)})
        elif parameter.kind is POSITIONAL:
            positional.append(given[name])
        else:
            named[name] = given[name]
    return positional, named


def _parser(command: str, function: Callable) -> argparse.ArgumentParser:
    """A flag for every parameter of a function, by its annotation; one with a default may be left out.

    A parameter that is positional only is given without a flag. A field of a dataclass that is a file, or a list of
    files, and may be left out may also be a flag without a value: a rule names it where its search needs none, too.
    """
    parser = argparse.ArgumentParser(
        f"wshare {command}",
        description=inspect.getdoc(function),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # A part of a flag would stand for another one as soon as a flag is added.
        allow_abbrev=False,
    )
    for flag in _flags(function):
        _add(parser, flag)
    return parser


def _add(parser: argparse.ArgumentParser, flag: _Flag) -> None:
    annotation, text = flag.annotation, None
    if get_origin(annotation) is Annotated:
        annotation, text = get_args(annotation)
    if flag.positional:
        parser.add_argument(flag.name, type=annotation, metavar=flag.name.upper(), help=text)
        return
    name = "--" + flag.name.replace("_", "-")
    needed = flag.default is inspect.Parameter.empty
    given: dict = {"required": True} if needed else {"default": flag.default}
    given["help"] = text if needed or text is None else _with_default(text, flag.default)
    if annotation == list[Path]:
        parser.add_argument(name, type=Path, nargs="*" if flag.bare and not needed else "+", metavar="FILE", **given)
    elif annotation is dict:
        parser.add_argument(name, type=_json_object, metavar="JSON", **given)
    elif annotation is bool:
        action = "store_true" if flag.default is False else argparse.BooleanOptionalAction
        parser.add_argument(name, action=action, **given)
    else:
        # Of `Path | None` the first. Where a value is the default, `none` says that there shall be none.
        kinds = get_args(annotation) or (annotation,)
        optional = type(None) in kinds and not needed and flag.default is not None
        metavar = {Path: "PATH", float: "NUMBER", int: "N", str: "TEXT"}[kinds[0]]
        count = {"nargs": "?"} if flag.bare and not needed else {}
        kind = _or_none(kinds[0]) if optional else kinds[0]
        parser.add_argument(name, type=kind, metavar=metavar, **count, **given)


def _with_default(text: str, default: object) -> str:
    """Help of a flag; a default that says nothing is left out."""
    if default is None or default is False or default in ({}, []):
        return text
    return f"{text} (default: {'yes' if default is True else default})"


def _json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; write it such as {{"key": 1}}')
    return value


def _or_none(kind: type) -> Callable[[str], object]:
    def read(text: str) -> object:
        return None if text == "none" else kind(text)

    # argparse names it where a value cannot be read.
    read.__name__ = kind.__name__
    return read
