"""A command by the server of forked processes is what it is as a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..forked import THREADS, forked
from ..runs import environment, run_to_end

# In the place of wshare: it tells what it finds, and ends as it is asked to.
PROBE = """
import json, os, signal, sys, tempfile, threading
import numpy
print(json.dumps({
    "arguments": sys.argv,
    "folder": os.getcwd(),
    "environment": {name: value for name, value in os.environ.items() if name != "BASH_FUNC_python%%"},
    "path": sys.path,
    "group": os.getpgrp(),
    "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "files": sorted(os.listdir("/proc/self/fd")),
    "threads": len(os.listdir("/proc/self/task")),
    "umask": os.umask(0o22),
    "temporary": tempfile.gettempdir(),
    "name": [__name__, sys.modules["__main__"].__file__],
    "terminals": [os.isatty(number) for number in range(3)],
    "ours": [name for name in sys.modules if name.split(".")[0] in ("wshare", "tests")],
}))
print("to the other stream", file=sys.stderr)
sys.stdin.read()
"""
ENDS = {
    "returns": "",
    "exits with a number": "sys.exit(7)",
    "exits with a text": "sys.exit('a reason')",
    "raises": "raise ValueError('a reason')",
    "is killed": "os.kill(os.getpid(), signal.SIGTERM)",
    "stops at once": "os._exit(9)",
    "has more to do": "threading.Timer(0.1, print, ['at last']).start()",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a package `wshare`, and a folder for temporary files."""
    (tmp_path / "wshare").mkdir()
    (tmp_path / "wshare" / "__init__.py").touch()
    (tmp_path / "temporary").mkdir()
    return tmp_path


def told(run: subprocess.CompletedProcess) -> tuple[int, dict, list[str], str]:
    """Code, what the probe found, what else was printed, and the last line of errors."""
    found, *more = run.stdout.splitlines()
    return run.returncode, json.loads(found), more, run.stderr.splitlines()[-1]


@pytest.mark.parametrize("end", ENDS)
def test_a_command_finds_and_gives_the_same(folder: Path, end: str):
    (folder / "wshare" / "__main__.py").write_text(PROBE + ENDS[end])
    command = [sys.executable, "-m", "wshare", "search", "--name", "of umläut \udcff"]
    more = {"PYTHONPATH": str(folder), "TMPDIR": str(folder / "temporary"), "PROBED": "yes"} | THREADS
    here, alone = (told(run_to_end(command, folder, alone=alone, **more)) for alone in (False, True))
    (code, found, *printed), (code_alone, found_alone, *printed_alone) = here, alone
    assert {key for key in found if found[key] != found_alone[key]} == set()
    assert (code, *printed) == (code_alone, *printed_alone)


def test_no_two_commands_draw_the_same_numbers(folder: Path):
    draws = "import random, numpy; print(random.random(), numpy.random.rand())"
    (folder / "wshare" / "__main__.py").write_text(draws)
    command = [sys.executable, "-m", "wshare"]
    first, second = (run_to_end(command, folder, PYTHONPATH=str(folder)).stdout.split() for _ in range(2))
    assert len({*first, *second}) == 4


def test_a_command_ends_with_who_asked_for_it(folder: Path):
    (folder / "wshare" / "__main__.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    command, variables = forked([sys.executable, "-m", "wshare"], environment(PYTHONPATH=str(folder)))
    run = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True)
    process = Path("/proc") / run.stdout.readline().strip()
    assert process.exists()
    run.kill()
    run.wait()
    run.stdout.close()
    end = time.monotonic() + 30
    while process.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
