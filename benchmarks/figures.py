"""The picture of README.md, docs/images/front.svg, from the files in benchmarks/results.

    python benchmarks/figures.py

It shows the points of the table "front" of docs/benchmarks.md. The same files give the same picture, byte for byte.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from tables import Files, front_points

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "front.svg"
# Method in the table, its name in the picture, colour and marker.
SERIES = (
    ("**wshare** rate_distortion", "wshare", "#c0392b", "o"),
    ("nncodec_tuned", "nncodec, tuned", "#1f5f99", "s"),
    ("nncodec", "nncodec (ISO/IEC 15938-17)", "#4a9bd9", "s"),
    ("coremltools_kmeans", "k-means (coremltools)", "#2e8b57", "^"),
    ("uniform_kmeans", "k-means, optimal, one k", "#8a6d3b", "v"),
    ("round_to_nearest", "round to nearest", "#777777", "x"),
)


def main() -> None:
    """Draw the picture."""
    PICTURE.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "wshare", "font.size": 9, "axes.titlesize": 9}):
        figure = draw(front(Files()))
        figure.savefig(PICTURE, metadata={"Date": None}, bbox_inches="tight")


def front(files: Files) -> dict[str, list[tuple[float, float, float]]]:
    """Rate, relative accuracy and KL (nats) of every point, by method; by ascending rate."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for method, setting, rate, _, row in front_points(files):
        # Codebooks of groups of rows are another method under the same name.
        if "groups" not in setting:
            # To the digits of the table: those that show.
            shown = (round(rate, 2), round(float(row["relative_quality"]), 3), round(float(row["kl"]), 4))
            points.setdefault(method, []).append(shown)
    return {method: sorted(found) for method, found in points.items()}


def draw(points: dict[str, list[tuple[float, float, float]]]) -> Figure:
    """Divergence and accuracy kept against the rate."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for method, label, colour, marker in SERIES:
        rates, accuracies, divergences = zip(*points[method], strict=True)
        ours = label == "wshare"
        style = {
            "color": colour,
            "marker": marker,
            "ms": 5 if ours else 4,
            "lw": 2.2 if ours else 1,
            "zorder": 2 + ours,
        }
        left.plot(rates, divergences, label=label, **style)
        right.plot(rates, [100 * share for share in accuracies], **style)
    left.set(yscale="log", ylim=(1e-3, 10), title="divergence from float32 (KL, nats): lower is better")
    right.set(ylim=(80, 102), title="float32 accuracy kept (%): higher is better")
    right.axhline(99, color="black", lw=0.8, ls=":")
    right.text(14.3, 99.15, "99 %", ha="right", fontsize=8)
    for axes in (left, right):
        axes.set(xlim=(3.5, 14.3), xlabel="times smaller than float32, everything counted")
        axes.grid(alpha=0.25, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    main()
