"""Which slips of the hand the unit tests would not see.

    nice python -m tests.mutation [--sample 20] [--seed 0] [--module packed/entropy.py ...]

Changes a copy of the project in one place, runs the unit tests that concern the module, and goes on to the next of a
seeded sample of such mutants; those that no test sees are printed as file:line: before -> after, and at the end how
many were seen. Not all that survive are faults of the tests: some mutants do the same by another way, or change only
how long it takes.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
PACKAGE = Path("workflow", "wshare")
LEFT_OUT = (".git", ".venv", ".cache", ".snakemake", "results", "site", "__pycache__", ".hypothesis", ".ruff_cache")
SLOPE_SEARCH = ("tests/unit/search/rate_distortion",)
BY_K = ("tests/unit/search/by_k",)
PARTS = ("greedy", "method", "milp", "problem", "slope", "two_step", "uniform")
# Unit tests that concern a module; more would take longer, and see a slip far from where it is.
MODULES = {
    "tasks/classification.py": ("tests/unit/tasks",),
    "evaluation/intervals.py": ("tests/unit/evaluation",),
    "search/evaluator.py": (*SLOPE_SEARCH, *BY_K),
    "search/rate_distortion/search.py": SLOPE_SEARCH,
    "search/rate_distortion/slope.py": SLOPE_SEARCH,
    "calibration/sensitivity.py": ("tests/unit/calibration/test_sensitivity.py",),
    **{
        f"search/by_k/{name}.py": BY_K
        for name in ("greedy", "method", "milp", "problem", "slope", "two_step", "uniform")
    },
    "models/folding.py": ("tests/unit/models/test_folding.py",),
    "packed/entropy.py": ("tests/unit/packed/test_entropy.py",),
}


def seen(copy: Path, tests: tuple[str, ...], numba_cache: Path, limit: float) -> bool:
    """Whether the tests fail on the copy, or run longer than `limit` seconds."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    paths = os.pathsep.join((str(copy / "workflow"), str(copy)))
    changed = {"PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(numba_cache), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command,
        cwd=copy,
        env=os.environ | changed,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(limit) != 0
        except subprocess.TimeoutExpired:
            # Programs that a test has started go with it.
            os.killpg(process.pid, 9)
            return True


def survivors(copy: Path, module: str, chosen: list[Mutant]) -> list[Mutant]:
    """The mutants of a module that its tests do not see; RuntimeError if they fail as it is."""
    path, tests = copy / PACKAGE / module, MODULES[module]
    source = path.read_text(encoding="utf-8")
    started = time.monotonic()
    if seen(copy, tests, copy / "numba", 3600):
        raise RuntimeError(f"{module}: its tests fail without a change; mend them first: {' '.join(tests)}")
    limit = 3 * (time.monotonic() - started) + 30
    alive = []
    for number, mutant in enumerate(chosen):
        path.write_text(mutant.source, encoding="utf-8")
        # Compiled functions are kept by their own file's time: those of the changed file's callers would be stale.
        cache = copy / f"numba{number}" if "numba" in source else copy / "numba"
        if not seen(copy, tests, cache, limit):
            alive.append(mutant)
            print(f"{PACKAGE / module}:{mutant.line}: {mutant.before} -> {mutant.after}", flush=True)
    path.write_text(source, encoding="utf-8")
    return alive


def main() -> None:
    """Run the sample, and print the survivors and the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", action="append", choices=MODULES, help="this module alone; may be repeated")
    arguments = parser.parse_args()
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for module in arguments.module or MODULES:
            found = mutants((ROOT / PACKAGE / module).read_text(encoding="utf-8"))
            chosen = random.Random(arguments.seed).sample(found, min(arguments.sample, len(found)))
            rates.append((module, len(chosen), len(survivors(copy, module, chosen))))
    for module, tried, alive in [*rates, ("all", *(sum(column) for column in list(zip(*rates, strict=True))[1:]))]:
        print(f"{module}: {tried - alive} of {tried} seen, {1 - alive / tried:.0%}")


if __name__ == "__main__":
    main()
