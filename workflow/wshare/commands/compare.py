"""`wshare compare`: two packed files, or two search folders, side by side."""

from pathlib import Path
from typing import Annotated

from wshare.commands.inspect import described
from wshare.commands.tables import print_json, print_table
from wshare.errors import UserError
from wshare.files.sealed import check_origin, read_json, sha256_file
from wshare.packed.contents import contents

NONE = "-"


def compare(
    a: Annotated[Path, "packed file, or folder of a search"],
    b: Annotated[Path, "another"],
    /,
    *,
    json: Annotated[bool, "print JSON"] = False,
) -> None:
    """Hold two packed files, or two searches, side by side: sizes, each layer's k and bits, and quality.

    Example:
      wshare compare results/lenet5/search/slope results/lenet5/search/rate_distortion

    Quality is told for folders whose metrics.json is there.
    """
    both = [_read(path) for path in (a, b)]
    if json:
        print_json({str(path): found for path, found in zip((a, b), both, strict=True)})
        return
    rows = [
        ("file, bytes", *(f"{found['bytes']:,}" for found in both)),
        ("compression rate", *(f"{found['compression_rate']:.2f}x" for found in both)),
        ("bits a value", *(f"{found['bits_per_value']:.2f}" for found in both)),
        ("format", *(found["format"] for found in both)),
    ]
    if any("quality" in found for found in both):
        quality = [found.get("quality", {}) for found in both]
        rows += [
            (label, *(text.format(of(found)) if found else NONE for found in quality)) for label, text, of in QUALITY
        ]
    print_table(("", "A", "B"), rows)
    print(f"\nA: {a}\nB: {b}\n")
    names = list(dict.fromkeys(name for found in both for name in found["layers"]))
    lines = []
    for name in names:
        layers = [found["layers"].get(name) for found in both]
        lines.append((name, *_cells(layers, "k", "{:,}"), *_cells(layers, "bits_per_weight", "{:.2f}")))
    print_table(("layer", "k of A", "k of B", "bits/weight of A", "of B"), lines)


QUALITY = (
    ("top-1", "{:.2%}", lambda metrics: metrics["compressed"]["top1"]),
    ("share of float32", "{:.2%}", lambda metrics: metrics["relative_quality"]),
    ("interval from", "{:.2%}", lambda metrics: metrics["relative_quality_ci95"][0]),
    ("interval to", "{:.2%}", lambda metrics: metrics["relative_quality_ci95"][1]),
    ("divergence, nats", "{:.4f}", lambda metrics: metrics["compressed"]["kl"]),
    ("verdict", "{}", lambda metrics: metrics["verdict"]),
)


def _cells(layers: list[dict | None], key: str, text: str) -> list[str]:
    return [NONE if layer is None else text.format(layer[key]) for layer in layers]


def _read(path: Path) -> dict:
    """Contents of a packed file, or of that of a search's folder, with the content of its metrics.json."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return described(contents(path))
    packed, metrics = path / "packed.safetensors", path / "metrics.json"
    found = described(contents(packed))
    if metrics.is_file():
        found["quality"] = read_json(metrics)
        check_origin(metrics, found["quality"]["sha256"], {"packed": sha256_file(packed)})
    return found
