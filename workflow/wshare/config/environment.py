"""The environment that jobs inherit from Snakemake's process."""

import os
import shlex
import sys
from pathlib import Path

from wshare.errors import COMMAND

# glibc hands the memory of large tensors back to the system after each use and clears it anew for the next:
# with these thresholds, in bytes, evaluation of an ImageNet network takes about half the time.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": 1 << 30,
    "MALLOC_TRIM_THRESHOLD_": 1 << 30,
    "MALLOC_TOP_PAD_": 1 << 28,
}


def prepare_for_jobs(packages: Path, typed: list[str]) -> None:
    """Let `python -m wshare` find the package and this very Python, also where no environment is activated.

    Sets how jobs allocate memory too; what the user has set stays. `typed` is Snakemake's command line, which messages
    repeat where a file has to be made again; empty where the user did not type it.
    """
    if typed:
        os.environ.setdefault(COMMAND, shlex.join(["snakemake", *typed[1:]]))
    for variable, nbytes in MALLOC.items():
        os.environ.setdefault(variable, str(nbytes))
    for variable, folder in (("PYTHONPATH", packages), ("PATH", Path(sys.executable).parent)):
        present = os.environ.get(variable, "")
        if present.split(os.pathsep)[0] != str(folder):
            os.environ[variable] = os.pathsep.join(filter(None, [str(folder), present]))
