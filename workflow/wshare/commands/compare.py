"""`wshare compare`: two packed files, or two search folders, side by side."""

from pathlib import Path
from typing import Annotated

from wshare.commands.inspect import described
from wshare.commands.tables import print_json, print_table
from wshare.errors import UserError
from wshare.files.sealed import check_origin, read_json, sha256_file
from wshare.packed.contents import contents
from wshare.report.texts import percent
from wshare.tasks.table import DEFAULT, task_of
from wshare.tasks.task import own_figures

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
        rows += _quality([found.get("quality") for found in both])
    print_table(("", "A", "B"), rows)
    print(f"\nA: {a}\nB: {b}\n")
    names = list(dict.fromkeys(name for found in both for name in found["layers"]))
    lines = []
    for name in names:
        layers = [found["layers"].get(name) for found in both]
        lines.append((name, *_cells(layers, "k", "{:,}"), *_cells(layers, "bits_per_weight", "{:.2f}")))
    print_table(("layer", "k of A", "k of B", "bits/weight of A", "of B"), lines)


# Rows that each task has.
QUALITY = (
    ("share of float32", "{}", lambda metrics: _share(metrics, metrics["relative_quality"])),
    ("interval from", "{}", lambda metrics: _share(metrics, metrics["relative_quality_ci95"][0])),
    ("interval to", "{}", lambda metrics: _share(metrics, metrics["relative_quality_ci95"][1])),
    ("divergence, nats", "{:.4f}", lambda metrics: metrics["compressed"]["kl"]),
    ("verdict", "{}", lambda metrics: metrics["verdict"]),
)


def _share(metrics: dict, share: float) -> str:
    return percent(share, metrics["quality_target"])


def _quality(both: list[dict | None]) -> list[tuple[str, ...]]:
    """Rows of quality by two metrics.json, either of which may be missing."""
    # Files made before tasks had names are of the default one.
    figures = [own_figures(task_of({"task": DEFAULT} | metrics))[0] if metrics else None for metrics in both]
    label = " or ".join(dict.fromkeys(figure.label for figure in figures if figure))
    first = [
        figure.text(metrics["compressed"][figure.key]) if figure else NONE
        for figure, metrics in zip(figures, both, strict=True)
    ]
    others = [
        (name, *(text.format(of(metrics)) if metrics else NONE for metrics in both)) for name, text, of in QUALITY
    ]
    return [(label, *first), *others]


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
