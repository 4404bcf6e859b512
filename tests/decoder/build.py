"""Compiles the decoder of decoder/ and feeds it packed files."""

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FOLDER, HERE = ROOT / "decoder", Path(__file__).parent
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", f"-I{FOLDER}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
# In the order of the header.
TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
FORMS = ("stored", "float32", "float16", "index16", "index8", "codebook", "scales")
ERRORS = [
    *("OK", "NO_FILE", "VERSION", "HASH", "INDEX", "TWICE", "CLAIM", "TENSOR", "TOO_LARGE"),
    *("NO_ROOM", "NO_TENSOR", "NO_FORM", "RANGE"),
]


def compiled(output: Path, *sources: str | Path, compiler: str = "gcc", flags: list[str] = (*SANITIZE, "-O1")) -> Path:
    """A program, or with `-c` an object, of C sources."""
    command = [compiler, *FLAGS, *flags, *map(str, sources), "-o", str(output)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return output


def driver(folder: Path, **options) -> Path:
    """The program that decodes files from its standard input."""
    return compiled(folder / "driver", HERE / "driver.c", HERE / "wshare.c", **options)


@dataclass(frozen=True)
class Tensor:
    """What the decoder says of a tensor: its data by form, or the name of an error."""

    name: str
    array: np.ndarray
    k: int
    same_as: int
    forms: dict[str, bytes | str]


def decode(program: Path, files: list[bytes], *arguments: str) -> list[list[Tensor] | str]:
    """The tensors of each file, or the name of the error it ends with."""
    stream = b"".join(struct.pack("<I", len(content)) + content for content in files)
    run = subprocess.run(
        [program, *arguments], input=stream, capture_output=True, env={"ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert run.returncode == 0, run.stderr.decode()
    reader = _Reader(run.stdout)
    found = [reader.file() for _ in files]
    assert reader.place == len(run.stdout)
    return found


class _Reader:
    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def take(self, size: int) -> bytes:
        self.place += size
        return self.content[self.place - size : self.place]

    def numbers(self, kind: str) -> tuple[int, ...]:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))

    def file(self) -> list[Tensor] | str:
        (code,) = self.numbers("i")
        if code:
            return ERRORS[code]
        _, count = self.numbers("II")
        return [self.tensor() for _ in range(count)]

    def tensor(self) -> Tensor:
        name = self.take(self.numbers("I")[0]).decode()
        kind, k, same_as, axes = self.numbers("IIII")
        shape = self.numbers(f"{axes}Q")
        forms = {form: self.form() for form in FORMS}
        return Tensor(name, np.frombuffer(forms["stored"], TYPES[kind]).reshape(shape), k, same_as, forms)

    def form(self) -> bytes | str:
        (size,) = self.numbers("Q")
        return ERRORS[(1 << 64) - 1 - size] if size >> 63 else self.take(size)
