"""`python -m wshare <stage> --flag value ...`: the stages from a shell, as the rules call them."""

import argparse
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from wshare import __version__
from wshare.errors import UserError

STAGES = (
    "fetch_model",
    "train_model",
    "prepare_images",
    "evaluate_dense",
    "inspect_model",
    "extract_weights",
    "cluster_layer",
    "profile_layers",
    "gather_sensitivity",
    "measure_inputs",
    "search",
    "search_rate_distortion",
    "pack_model",
    "pack_rate_distortion",
    "evaluate_packed",
    "summarise",
    "report_model",
    "report_study",
)
# What a user calls, and no rule does.
COMMANDS = ("evaluate",)


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; returns the exit code. Bad input ends in one line on standard error and 1."""
    # Batches run side by side on our own threads: libraries that start theirs too would fight for the
    # cores, and make sums depend on their number. Set before numpy and torch are imported.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[variable] = "1"
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser("wshare", description="A stage of the workflow; `<stage> --help` tells its flags.")
    parser.add_argument("--version", action="version", version=f"wshare {__version__}")
    parser.add_argument("stage", choices=(*STAGES, *COMMANDS))
    stage = parser.parse_args(arguments[:1]).stage
    try:
        function = getattr(importlib.import_module(f"wshare.stages.{stage}"), stage)
        function(**vars(_stage_parser(stage, function).parse_args(arguments[1:])))
    except (UserError, OSError) as error:
        print(f"wshare {stage}: error: {error}", file=sys.stderr)
        return 1
    return 0


def _stage_parser(stage: str, function: Callable) -> argparse.ArgumentParser:
    """A flag for every parameter of a stage's function, by its annotation; one with a default may be left out."""
    parser = argparse.ArgumentParser(f"wshare {stage}", description=function.__doc__)
    for name, parameter in inspect.signature(function).parameters.items():
        flag = "--" + name.replace("_", "-")
        needed = parameter.default is parameter.empty
        given = {"required": True} if needed else {"default": parameter.default}
        if parameter.annotation == list[Path]:
            parser.add_argument(flag, type=Path, nargs="+", metavar="FILE", **given)
        elif parameter.annotation is dict:
            parser.add_argument(flag, type=json.loads, metavar="JSON", **given)
        elif parameter.annotation is bool:
            action = "store_true" if parameter.default is False else argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, **given)
        else:
            # Of `Path | None` the first.
            kind = next(iter(get_args(parameter.annotation)), parameter.annotation)
            parser.add_argument(flag, type=kind, **given)
    return parser
