"""Memory and time of a network that stays compressed, at several budgets, beside the dense one.

    PYTHONPATH=workflow python benchmarks/compressed.py --results results/efficientnet_lite0 --search rate_distortion

`--results` is the folder that a study leaves. Budgets are none, a fourth and a half of the bytes of all expanded
weights, and all of them. `compressed` and `held` are parameters and buffers, and what stays expanded.

Resident memory is that of a process of its own on one thread, less that before the network was made (another one had
been, so that all code is loaded): after loading, once the C library has given back what was freed (malloc_trim), and
the highest in ten passes of one image; medians of the processes, which take turns. Linux alone tells it. It is
measured with the environment as it is, and once more with MALLOC_MMAP_THRESHOLD_=65536, with which the GNU C library
gives back every block of 64 KiB or more when it is freed, which it otherwise keeps for a while.

Times are of the same images in one process on one thread, in turns: the median over rounds of the ratio to the dense
network's time in the same round, and of the milliseconds; also in both environments. Every network gives the dense
one's logits, or the script ends.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gather import RESULTS, measured
from torch import nn

from wshare.artifacts.model import read_model
from wshare.files.tables import write_table
from wshare.models.state import load_state
from wshare.nn import SharedTensor, compressed
from wshare.packed.format import load_packed

NAMES = ("dense", "none", "fourth", "half", "all")
SHARES = {"none": 0, "fourth": 1 / 4, "half": 1 / 2, "all": 1}
ENVIRONMENTS = {"default": {}, "given_back": {"MALLOC_MMAP_THRESHOLD_": "65536"}}
COLUMNS = ["environment", "network", "budget", "compressed", "held", "resident", "highest"]
COLUMNS += ["one_ms", "one_ratio", "batch_ms", "batch_ratio", "batch", "rounds", "processes", "measured"]
BATCH, PASSES = 10, 10


def parts(model: nn.Module) -> list[SharedTensor]:
    """Shared tensors of a network."""
    return [part for part in model.modules() if isinstance(part, SharedTensor)]


def made(arguments: argparse.Namespace, name: str, budget: int) -> nn.Module:
    """The dense network with the packed file's weights, or a compressed one."""
    packed = arguments.results / "search" / arguments.search / "packed.safetensors"
    model = read_model(arguments.results / "model/model.json", arguments.results / "model/weights.safetensors")
    if name == "dense":
        load_state(model, load_packed(packed), str(packed))
        return model
    return compressed(model, packed, None if name == "none" else budget)


def images(count: int, side: int) -> torch.Tensor:
    """Noise, in the order in memory that evaluation uses."""
    torch.manual_seed(0)
    return torch.randn(count, 3, side, side).to(memory_format=torch.channels_last)


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process that lie in memory, or with VmHWM that lay there at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def given_back() -> int:
    """Bytes that lie in memory once all that was freed is the system's again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def alone(arguments: argparse.Namespace) -> None:
    """Print what one network adds to the resident memory of this process."""
    torch.set_num_threads(1)
    image = images(1, arguments.side)
    with torch.inference_mode():
        made(arguments, arguments.alone, arguments.budget)(image)
        before = given_back()
        model = made(arguments, arguments.alone, arguments.budget)
        loaded = given_back()
        # Starts the count of the highest again.
        Path("/proc/self/clear_refs").write_text("5")
        for _ in range(PASSES):
            model(image)
    print(json.dumps([loaded - before, resident("VmHWM") - before]))


def told(arguments: argparse.Namespace, environment: str, *flags: object) -> object:
    """What this script prints with these flags, in a process of its own."""
    command = [sys.executable, __file__, "--results", arguments.results, "--search", arguments.search]
    command += ["--side", arguments.side, "--rounds", arguments.rounds, *flags]
    run = subprocess.run(
        [*map(str, command)], env=os.environ | ENVIRONMENTS[environment], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def memory(arguments: argparse.Namespace, environment: str, budgets: dict[str, int]) -> dict[str, list[int]]:
    """Resident memory of each network after loading, and the highest; medians over processes."""
    runs: dict[str, list[list[int]]] = {name: [] for name in NAMES}
    for _ in range(arguments.processes):
        for name, of in runs.items():
            of.append(told(arguments, environment, "--alone", name, "--budget", budgets.get(name, 0)))
    return {name: [int(statistics.median(column)) for column in zip(*of, strict=True)] for name, of in runs.items()}


def times(networks: dict[str, nn.Module], given: torch.Tensor, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds an image, and the ratio to the dense network, of each; SystemExit if their logits differ."""
    found: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        expected = networks["dense"](given)
        for name, model in networks.items():
            if not torch.equal(model(given), expected):
                raise SystemExit(f"{name}: other logits than the dense network's")
        for _ in range(rounds):
            for name, model in networks.items():
                start = time.perf_counter()
                model(given)
                found[name].append(1000 * (time.perf_counter() - start) / len(given))
    ratios = {name: [a / b for a, b in zip(of, found["dense"], strict=True)] for name, of in found.items()}
    return {name: (statistics.median(found[name]), statistics.median(ratios[name])) for name in networks}


def prepared(arguments: argparse.Namespace) -> tuple[dict[str, int], dict[str, nn.Module]]:
    """Budgets, and all networks."""
    expanded = sum(part.nbytes for part in parts(made(arguments, "none", 0)))
    budgets = {name: int(share * expanded) for name, share in SHARES.items()}
    return budgets, {name: made(arguments, name, budgets.get(name, 0)) for name in NAMES}


def timed(arguments: argparse.Namespace) -> None:
    """Print the times of all networks, of one image and of a batch."""
    torch.set_num_threads(1)
    _, networks = prepared(arguments)
    print(json.dumps([times(networks, images(count, arguments.side), arguments.rounds) for count in (1, BATCH)]))


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """Rows of the table."""
    version = measured()
    budgets, networks = prepared(arguments)
    for environment in ENVIRONMENTS:
        residents = memory(arguments, environment, budgets)
        single, batch = told(arguments, environment, "--timed")
        for name, model in networks.items():
            row = {"environment": environment, "network": name, "budget": budgets.get(name, "")}
            row["compressed"] = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
            row["held"] = sum(part.nbytes for part in parts(model) if part.held is not None)
            row |= dict(zip(("resident", "highest"), residents[name], strict=True))
            for key, found in (("one", single[name]), ("batch", batch[name])):
                row |= {f"{key}_ms": round(found[0], 2), f"{key}_ratio": round(found[1], 3)}
            row |= {"batch": BATCH, "rounds": arguments.rounds, "processes": arguments.processes}
            yield row | {"measured": version}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--search", required=True)
    parser.add_argument("--output", type=Path, default=RESULTS / "compressed.csv")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--alone", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        alone(arguments)
    elif arguments.timed:
        timed(arguments)
    else:
        write_table(arguments.output, COLUMNS, [*rows(arguments)])


if __name__ == "__main__":
    main()
