"""`wshare inspect`: what a packed file holds."""

from pathlib import Path
from typing import Annotated

from wshare.commands.tables import print_json, print_table
from wshare.models.coverage import LOUD, MOST
from wshare.names import layer_of_tensor
from wshare.packed.contents import Contents, contents


def inspect(file: Annotated[Path, "packed file"], /, *, json: Annotated[bool, "print JSON"] = False) -> None:
    """List the layers of a packed file: shape, number of shared values, bits and bytes, and totals.

    Example:
      wshare inspect net.wshare.safetensors

    The whole file is read and checked. Bits and bytes of a layer count its codebook, indices and scales.
    """
    found = contents(file)
    if json:
        print_json({"file": str(file)} | described(found))
        return
    rows = [
        (
            layer_of_tensor(tensor.name),
            "x".join(map(str, tensor.shape)),
            f"{tensor.weights:,}",
            f"{tensor.k:,}",
            f"{tensor.bits:.2f}",
            f"{tensor.bytes:,}",
        )
        for tensor in found.shared
    ]
    print_table(("layer", "shape", "weights", "k", "bits/weight", "bytes"), rows)
    total = described(found)
    print(
        f"\n{len(found.shared)} shared layers, {found.folded_batch_norms} batch norms folded and "
        f"{found.batch_norms} kept, {_kept(found)} tensors kept: {found.other_bytes:,} bytes with the header\n"
        f"total {found.bytes:,} bytes ({found.format}, version {found.version}) for {found.dense_bytes:,} bytes of "
        f"plain tensors: {total['compression_rate']:.2f}x, {total['bits_per_value']:.2f} bits a value\n"
        f"{_coverage(found)}"
    )


def _kept(found: Contents) -> int:
    return len(found.kept) + found.counters


def _coverage(found: Contents) -> str:
    """The share of weights that are shared, and, if that is little, the largest of the others."""
    line = f"{found.share:.1%} of the weights are shared"
    if found.share >= LOUD:
        return line
    largest = ", ".join(f"{name} ({count:,})" for name, count in list(found.kept.items())[:MOST])
    return (
        f"ONLY {line}; the largest tensors that are kept: {largest}; the result of the compression, or layers.json, "
        "says why"
    )


def described(found: Contents) -> dict:
    """Contents as JSON."""
    return {
        "version": found.version,
        "format": found.format,
        "layers": {
            layer_of_tensor(tensor.name): {
                "shape": list(tensor.shape),
                "k": tensor.k,
                "bits_per_weight": tensor.bits,
                "bytes": tensor.bytes,
            }
            for tensor in found.shared
        },
        "folded_batch_norms": found.folded_batch_norms,
        "batch_norms": found.batch_norms,
        "kept_tensors": _kept(found),
        "shared_share": found.share,
        "other_bytes": found.other_bytes,
        "bytes": found.bytes,
        "dense_bytes": found.dense_bytes,
        "compression_rate": found.dense_bytes / found.bytes,
        "bits_per_value": 8 * found.bytes / max(1, found.values),
    }
