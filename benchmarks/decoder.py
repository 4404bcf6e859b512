"""Speed, memory and code size of the decoder in C, beside Python's reader.

    PYTHONPATH=workflow python benchmarks/decoder.py --packed results/<model>/search/<search>/packed.safetensors

Takes a packed file of any version, and the same tensors packed again as version 3, entropy-coded and of fixed width (a
folded batch norm is kept there as its tensors). Both decoders get the file in memory, check all, and give all tensors
as they are stored, on one thread; they take turns. Seconds are the median of the rounds. Compilation by numba is
excluded. C is compiled by `cc -O2`; the code size is what arm-none-eabi-size calls text of

    arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -Os
"""

import argparse
import csv
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from gather import RESULTS, ROOT, measured

from wshare.packed.format import load_packed, pack, read_index, read_shared

COLUMNS = ["name", "value", "unit", "measured"]
ARM = ["arm-none-eabi-gcc", "-std=c99", "-mcpu=cortex-m4", "-mthumb", "-Os", "-c"]


def files(packed: Path) -> dict[str, bytes]:
    """The file, and the same packed again, by name."""
    content = packed.read_bytes()
    shared = read_shared(content)[0]
    state = {name: tensor.numpy() for name, tensor in load_packed(content).items()}
    again = {form: pack(state, shared, {}, {}, {}, form)[0] for form in ("entropy", "fixed")}
    given = f"v{read_index(content)['version']}_given"
    return {given: content} | {f"v3_{form}": found for form, found in again.items()}


def compiled(folder: Path) -> Path:
    """The timing program."""
    program = folder / "decoder.program"
    subprocess.run(["cc", "-std=c99", "-O2", ROOT / "benchmarks/decoder.c", "-o", program], check=True)
    return program


def code_sizes(folder: Path) -> list[tuple[str, int, str]]:
    """Bytes of machine code for a Cortex-M4, of all versions of the format and of version 3 alone."""
    source, rows = folder / "wshare.c", []
    source.write_text('#define WSHARE_IMPLEMENTATION\n#include "wshare.h"\n')
    for name, flags in (("code_all", []), ("code_v3", ["-DWSHARE_ONLY_V3"])):
        command = [*ARM, *flags, f"-I{ROOT / 'decoder'}", str(source), "-o", str(folder / "wshare.o")]
        subprocess.run(command, check=True)
        table = subprocess.run(["arm-none-eabi-size", folder / "wshare.o"], capture_output=True, text=True, check=True)
        rows.append((name, int(table.stdout.split("\n")[1].split()[0]), "bytes"))
    return rows


def timed(program: Path, name: str, content: bytes, rounds: int) -> list[tuple[str, float, str]]:
    """Rows of one file."""
    path = program.parent / name
    path.write_bytes(content)
    state = load_packed(content)
    python, native = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        load_packed(content)
        python.append(time.perf_counter() - start)
        run = subprocess.run([program, path, "1"], capture_output=True, text=True, check=True)
        seconds, memory, scratch = run.stdout.split()
        native.append(float(seconds))
    numbers = sum(tensor.numel() for tensor in state.values())
    found = {"bytes": len(content), "numbers": numbers, "index": int(memory), "scratch": int(scratch)}
    rows = [(f"{name}_{what}", value, "numbers" if what == "numbers" else "bytes") for what, value in found.items()]
    for what, seconds in (("python", python), ("c", native)):
        rows.append((f"{name}_{what}", round(statistics.median(seconds), 4), "seconds"))
    largest = max(tensor.nbytes for tensor in state.values())
    return [*rows, (f"{name}_largest", largest, "bytes")]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS / "decoder.csv")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    # Before the table is touched, which would make the tree another.
    version = measured()
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        rows = code_sizes(Path(folder))
        for name, content in files(arguments.packed).items():
            rows += timed(program, name, content, arguments.rounds)
    with arguments.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([*row, version] for row in rows)
    for row in rows:
        print(*row)


if __name__ == "__main__":
    main()
