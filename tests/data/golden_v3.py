"""Writes the golden files of version 3 and what they must decode to: python -m tests.data.golden_v3 <folder>"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from wshare.packed.format import BatchNorm, FoldedNorm, load_packed, write_packed
from wshare.quantize.codebooks import Layout, Shared


def parts() -> tuple:
    """Every kind of entry: exponents, float16 codebooks, grids, k = 1, every coding of integers, another axis of
    outputs, folded and kept batch norms, kept types and codings, an alias.

    Made of integers alone, so that no generator of random numbers decides what is in the files.
    """
    ramp = np.arange(180)
    indices = (ramp * ramp // 7 % 5).astype(np.uint16).reshape(10, 2, 3, 3)
    coded = (np.minimum(ramp * 37 % 101, 11) // 2).astype(np.uint16).reshape(12, 15)
    shared = {
        "conv.weight": Shared(
            np.array([-1.1, -0.25, 0.0, 0.3, 2.0], np.float32), indices, (np.arange(10) * 7 % 23 - 11).astype(np.int16)
        ),
        "half.weight": Shared(np.arange(-3, 3, dtype=np.float32) / 4, coded),
        "one.weight": Shared(np.array([0.1], np.float32), np.zeros((3, 4), np.uint16)),
        "wide.weight": Shared(np.arange(300, dtype=np.float32) / 7, (ramp * 5 % 300).astype(np.uint16)),
        "empty.weight": Shared(np.array([1.0], np.float32), np.zeros((0, 4), np.uint16)),
    }
    # Columns of very different sizes, in rows that are longer than one: contexts pay.
    columns = np.arange(40)
    wide = np.arange(60)[:, None] * (2 * columns + 3) % (1 + (columns % 8 == 0) * 60) % 41
    shared |= {
        # Multiples of a step from -9 on, not all of which are there.
        "grid.weight": _on_grid(np.array([-9, -4, -1, 0, 1, 2, 3, 7, 20]), ramp[:90] * ramp[:90] % 17 % 9, 0.125),
        "turned.weight": Shared(
            np.array([-0.5, 0, 0.3], np.float32),
            (ramp[:24] * 5 % 7 % 3).astype(np.uint16).reshape(4, 3, 2),
            (np.arange(6) * 4 - 8).astype(np.int16),
            Layout(1, 2),
        ),
        "contexts.weight": Shared(np.arange(41, dtype=np.float32) / 3, wide.astype(np.uint16)),
    }
    norms = {
        "bn": BatchNorm(np.array([1, 2.5], np.float32), np.array([0.5, -1], np.float32), 1e-3, True),
        "plain": BatchNorm(np.array([3], np.float16), np.array([0.25], np.float16), 1e-5, False),
    }
    folded = {
        "conv.bn": FoldedNorm("conv.weight", (np.arange(10) * 70_001 - 9).astype(np.int32), 0.01, 1e-3, True),
        "half.bn": FoldedNorm("half.weight", np.arange(12, dtype=np.int32) % 3, 0.5, 1e-5, False),
    }
    state = {name: np.zeros(tensor.indices.shape, np.float32) for name, tensor in shared.items()}
    state |= {"conv.bias": np.arange(10, dtype=np.float32) / 3, "counter": np.array(7), "mask": np.array([True, False])}
    state |= {
        "double": np.array([[1 / 3]]),
        "bytes": np.arange(5, dtype=np.uint8),
        "half": np.array([1 / 1024, 60000, -3], np.float32),
        "steps": np.arange(-20, 20, dtype=np.float32) * 0.375,
        "none": np.zeros((2, 0), np.float16),
    }
    return state, shared, norms, folded, {"tied.weight": "half.weight"}


def _on_grid(places: np.ndarray, indices: np.ndarray, step: float) -> Shared:
    levels = (places * step).astype(np.float32)
    return Shared(levels, indices.astype(np.uint16).reshape(9, 10), None, Layout(), step)


def write_golden(folder: Path) -> None:
    """Write golden_v3_entropy, golden_v3_fixed and golden_v3_expected, which both decode to."""
    for form in ("entropy", "fixed"):
        write_packed(folder / f"golden_v3_{form}.safetensors", *parts(), form)
    state = load_packed(folder / "golden_v3_entropy.safetensors")
    save_file({name: tensor.numpy() for name, tensor in state.items()}, folder / "golden_v3_expected.safetensors")


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
