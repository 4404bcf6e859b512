"""Tables of docs/benchmarks.md from a finished study and the peers' table.

    python benchmarks/tables.py results/efficientnet_lite0 [--seeds <the same folder of other seeds> ...]
        [--lites results/efficientnet_lite1 results/efficientnet_lite2]

Renews what stands between the marks `<!-- name -->` and `<!-- end -->` of docs/benchmarks.md.
"""

import argparse
import csv
import itertools
import json
import math
from pathlib import Path
from statistics import mean

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
FRONT = ["kl_001", "kl_006", "kl_012", "kl_025", "kl_050", "kl_100", "kl_200", "kl_400"]
TARGETS = ["rate_distortion", "rate_distortion_98", "fixed"]
# The search of benchmarks/lites.yaml.
LITES = "rate_distortion_98"
# Searches of one k a layer, to the target of 0.99.
OTHERS = ["slope", "two_step", "uniform"]
PARTS = {
    "kl_050": "everything on",
    "no_entropy_coder": "indices of fixed width, k-means codebooks",
    "no_error_feedback": "no error feedback",
    "no_bias_correction": "no correction of means",
    "no_least_squares": "no least-squares codebook",
    "no_assignment_descent": "no assignment descent (AdaRound's objective)",
    "no_variance_matching": "variances not matched",
    "no_folding": "batch norm not folded",
    "no_probe": "sensitivities not probed",
}


def main() -> None:
    """Write all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=Path, nargs="*", default=[])
    parser.add_argument("--lites", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    metrics, *others = (searches(folder) for folder in (arguments.results, *arguments.seeds))
    lites = {folder.name: searches(folder)[LITES] for folder in arguments.lites}
    with (HERE / "results" / "peers.csv").open(newline="") as file:
        peers = list(csv.DictReader(file))
    page = PAGE.read_text()
    for name, lines in {
        "targets": targets({name: metrics[name] for name in (*TARGETS, *OTHERS) if name in metrics}),
        "front": front(metrics, peers),
        "equal": equal(metrics, peers),
        "ablation": ablation(metrics),
        "networks": networks(),
        **({"seeds": seeds([metrics, *others])} if others else {}),
        **({"lites": targets(lites)} if lites else {}),
    }.items():
        head, _, rest = page.partition(f"<!-- {name} -->\n")
        page = f"{head}<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    PAGE.write_text(page)


def searches(results: Path) -> dict[str, dict]:
    """The verdict of each search of a model."""
    return {path.parent.name: json.loads(path.read_text()) for path in results.glob("search/*/metrics.json")}


def targets(found: dict[str, dict]) -> list[str]:
    """Searches to a target, as a user runs them: a row for each verdict."""
    lines = [
        "| | target | on disk | relative accuracy, 95 % interval | as float32 expects it | KL | agreement "
        "| images forwarded |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, m in found.items():
        low, high = m["relative_quality_ci95"]
        least, most = m["expected_relative_quality_ci95"]
        lines.append(
            f"| `{name}` ({m['format']}) | {m['quality_target']} | **{m['compression_rate']['on_disk']:.2f}x** "
            f"| {m['relative_quality']:.4f} ({low:.3f} to {high:.3f}) "
            f"| {m['expected_relative_quality']:.4f} ({least:.3f} to {most:.3f}) | {m['compressed']['kl']:.4f} "
            f"| {m['compressed']['agreement']:.4f} | {m['images_forwarded']:,} |"
        )
    return lines


def seeds(studies: list[dict]) -> list[str]:
    """The searches to a target with the images split by several seeds."""
    lines = [
        "| search | target | on disk | relative accuracy with each seed | mean | float32 expects, mean | KL, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in TARGETS:
        found = [metrics[name] for metrics in studies]
        rates = [m["compression_rate"]["on_disk"] for m in found]
        shares = [m["relative_quality"] for m in found]
        expected = mean(m["expected_relative_quality"] for m in found)
        loss = mean(m["compressed"]["kl"] for m in found)
        lines.append(
            f"| `{name}` | {found[0]['quality_target']} | {min(rates):.2f}x to {max(rates):.2f}x "
            f"| {', '.join(f'{share:.4f}' for share in shares)} | {mean(shares):.4f} | {expected:.4f} | {loss:.4f} |"
        )
    return lines


def front(metrics: dict, peers: list[dict]) -> list[str]:
    """Every method's points by rate."""
    lines = [
        "| method | setting | rate | size counted | relative accuracy | KL | agreement |",
        "|---|---|---|---|---|---|---|",
    ]
    points = {name: ("**wshare** rate_distortion", f"KL {int(name[3:]) / 1000:g} on search images") for name in FRONT}
    points |= {name: (f"wshare {name}", "quality target 0.99") for name in OTHERS}
    rows = []
    for name, words in points.items():
        if name in metrics:
            m = metrics[name]
            rows.append(
                (
                    *words,
                    m["compression_rate"]["on_disk"],
                    "file",
                    m["relative_quality"],
                    m["compressed"]["kl"],
                    m["compressed"]["agreement"],
                )
            )
    for row in peers:
        rows.append(
            (
                row["method"],
                row["setting"],
                float(row["rate"]),
                row["size_basis"],
                float(row["relative_quality"]),
                float(row["kl"]),
                float(row["agreement"]),
            )
        )
    for method, setting, rate, basis, share, kl, agreement in sorted(rows, key=lambda row: (row[0], row[2])):
        lines.append(f"| {method} | {setting} | {rate:.2f}x | {basis} | {share:.3f} | {kl:.4f} | {agreement:.4f} |")
    return lines


def equal(metrics: dict, peers: list[dict]) -> list[str]:
    """Our size at the divergence of each nncodec file, between our points on logarithmic axes."""
    points = sorted(
        (math.log(metrics[name]["compressed"]["kl"]), math.log(metrics[name]["compression_rate"]["on_disk"]))
        for name in FRONT
        if name in metrics
    )
    lines = ["| nncodec | its rate | KL | our rate at this KL | our file is smaller by |", "|---|---|---|---|---|"]
    for row in peers:
        kl = math.log(float(row["kl"]))
        if row["method"].startswith("nncodec") and points and points[0][0] <= kl <= points[-1][0]:
            for (low, first), (high, second) in itertools.pairwise(points):
                if low <= kl <= high:
                    ours = math.exp(first + (second - first) * (kl - low) / (high - low))
                    share = 1 - float(row["rate"]) / ours
                    rate, loss = float(row["rate"]), float(row["kl"])
                    lines.append(
                        f"| {row['method']} {row['setting']} | {rate:.2f}x | {loss:.4f} | {ours:.2f}x | {share:.1%} |"
                    )
                    break
    return lines


def ablation(metrics: dict) -> list[str]:
    """Each part turned off alone, at one divergence on search images."""
    lines = ["| | on disk | KL on held-out images | relative accuracy | bytes at equal KL |", "|---|---|---|---|---|"]
    whole = metrics.get("kl_050")
    for name, text in PARTS.items():
        if name in metrics:
            m = metrics[name]
            # Halving the divergence takes half a bit a weight at high rate.
            bits = m["bits_per_weight"] + 0.5 * math.log2(m["compressed"]["kl"] / whole["compressed"]["kl"])
            lines.append(
                f"| {text} | {m['compression_rate']['on_disk']:.2f}x | {m['compressed']['kl']:.4f} "
                f"| {m['relative_quality']:.3f} | {bits / whole['bits_per_weight'] - 1:+.1%} |"
            )
    return lines


def networks() -> list[str]:
    """CPU seconds and peak memory of each stage, a column a network, from benchmarks/networks.py."""
    with (HERE / "results" / "networks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names, stages = (list(dict.fromkeys(row[key] for row in rows)) for key in ("network", "stage"))
    cells = {(row["network"], row["stage"]): row for row in rows}
    lines = [f"| CPU s, peak MB | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for stage in stages:
        found = [cells[name, stage] for name in names]
        lines.append(f"| `{stage}` | " + " | ".join(f"{row['cpu_seconds']}, {row['peak_mb']}" for row in found) + " |")
    for title, key in (("jobs", "jobs"), ("images forwarded", "images_forwarded")):
        sums = (str(sum(int(cells[name, stage][key]) for stage in stages)) for name in names)
        lines.append(f"| {title} | {' | '.join(sums)} |")
    return lines


if __name__ == "__main__":
    main()
