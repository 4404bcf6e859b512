"""Charts of a report: Vega-Lite specifications made with altair, each with its finding in words and numbers.

Colours are those of Okabe & Ito (2008), which the colour-blind can tell apart; no chart relies on colour alone where it
compares, for marks differ in shape or place too.
"""

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import vl_convert

from wshare.files.atomic import atomic
from wshare.names import tensor_of_layer
from wshare.report.histograms import Histogram
from wshare.report.quality import counted_as, is_agreement
from wshare.report.results import Model, Search
from wshare.report.texts import counted, duration, memory, percent, recipe, significant, size
from wshare.tasks.table import task_of

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE = "#56B4E9", "#CC79A7"
BLACK, GREY = "#1b1b1b", "#8c8c8c"
# Of kinds of layers, as many as there are.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
# What all charts share; `aria` is off since each chart has a text of its own.
CONFIG = {
    "aria": False,
    "background": "#ffffff",
    "font": FONT,
    "view": {"stroke": None},
    # The marks of a chart in layers are of no help one by one either.
    "mark": {"aria": False},
    # Labels at the ends would be moved onto their neighbours.
    "axisX": {"labelFlush": False},
    "axis": {
        "labelColor": BLACK,
        "titleColor": BLACK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 600,
        "gridColor": "#e6e6e6",
        "domainColor": "#767676",
        "tickColor": "#767676",
        "labelLimit": 190,
        "labelSeparation": 4,
    },
    "legend": {
        "labelColor": BLACK,
        "titleColor": BLACK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 320,
        # One legend below the other: side by side they are wider than a telephone.
        "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
    },
    "text": {"color": BLACK, "fontSize": 12},
}
# Width and scale of the figures for papers, in pixels.
FIGURE_WIDTH, FIGURE_SCALE = 620, 2
# Of points far below the quality target only the number matters: the scale ends so many lost shares below it.
DEPTH = 5
# Share of the weights from which on a layer's bar is wide enough to be seen whole.
VISIBLE = 0.005
# A loss may be 0, which a logarithmic scale cannot show.
LEAST_KL = 1e-7


@dataclass(frozen=True)
class Chart:
    """A chart: a title, its finding in words, and its Vega-Lite specification."""

    title: str
    finding: str
    spec: dict


def make(title: str, finding: str, chart: alt.TopLevelMixin) -> Chart:
    """A chart as wide as its place on the page."""
    # Whether it is Vega-Lite the tests tell: that takes as long as drawing it.
    spec = chart.properties(width="container").to_dict(validate=False)
    # A page that needs no network names no address either, and the configuration is given once.
    spec.pop("$schema")
    spec.pop("config")
    return Chart(title, finding, spec)


def write_figures(chart: Chart, path: Path) -> None:
    """The chart as `path`.svg and `path`.png, for papers."""
    spec = chart.spec | {"width": FIGURE_WIDTH, "config": CONFIG | {"font": "sans-serif"}}
    # The library counts gradients through all charts of a process; a chart has one at most.
    svg = re.sub(r"\bgradient_\d+", "gradient", vl_convert.vegalite_to_svg(spec))
    with atomic(path.with_name(f"{path.name}.svg")) as temporary:
        temporary.write_text(svg, encoding="utf-8")
    with atomic(path.with_name(f"{path.name}.png")) as temporary:
        temporary.write_bytes(vl_convert.svg_to_png(svg, scale=FIGURE_SCALE))


def front(model: Model, search: Search) -> Chart:
    """Quality against size: all combinations measured, the front, the choice, the uniform baselines, the target."""
    target, metrics = search.metrics["quality_target"], search.metrics
    kinds = {
        "this search": (BLUE, "circle"),
        "uniform: one k for all layers": (ORANGE, "triangle-up"),
        "another search": (GREY, "circle"),
        "chosen (analytic, search images)": (VERMILLION, "diamond"),
        "packed file (on disk, held-out)": (BLACK, "square"),
    }
    own, uniform, other, chosen, packed = kinds
    points = []
    for entry in model.searches:
        kind = own if entry is search else uniform if _is_uniform(model, entry) else other
        points += [
            _point(entry, row, chosen if entry is search and row["chosen"] == "1" else kind) for row in entry.front
        ]
    low, high = metrics["relative_quality_ci95"]
    points.append(
        {
            "kind": packed,
            "search": search.name,
            "kB": metrics["bytes"]["packed"] / 1000,
            "share": significant(metrics["relative_quality"]),
            "low": significant(low),
            "high": significant(high),
            "recipe": recipe(chosen_ks(search).values()),
        }
    )
    # Drawn last, seen first.
    points.sort(key=lambda point: [other, uniform, own, packed, chosen].index(point["kind"]))
    floor = target - DEPTH * max(1 - target, 0.01)
    below = sum(point["share"] < floor for point in points)
    bottom = max(floor, min(target, *(point.get("low", point["share"]) for point in points)))
    top = max(1.0, *(point.get("high", point["share"]) for point in points))
    # Room for the words below the target line.
    margin = (top - bottom) / 12
    what, agreement = counted_as(task_of(metrics), metrics), is_agreement(metrics)
    kept = f"{what} as of float32" if agreement else f"share of float32 {what}"
    y = alt.Y("share:Q").title(kept).axis(format="%")
    y = y.scale(domain=[bottom - margin, top + margin], clamp=True, nice=False)
    x = alt.X("kB:Q").title("size, kB").scale(zero=True).axis(tickCount=8)
    marks = (
        alt.Chart(alt.Data(values=points))
        .mark_point(filled=True, size=75, opacity=0.95)
        .encode(
            x=x,
            y=y,
            **_told_apart("kind", kinds, points, columns=1, symbolSize=80, symbolOpacity=1),
            size=alt.condition(alt.FieldOneOfPredicate("kind", [chosen, packed]), alt.value(170), alt.value(60)),
            tooltip=[
                alt.Tooltip("kind:N").title("what"),
                alt.Tooltip("search:N"),
                alt.Tooltip("kB:Q").title("size, kB").format(",.1f"),
                alt.Tooltip("share:Q").title(kept).format(".2%"),
                alt.Tooltip("kl:Q").title("KL, nats"),
                alt.Tooltip("images:N").title("search images looked at"),
                alt.Tooltip("recipe:N").title("shared values, layer by layer"),
            ],
        )
    )
    line = alt.Chart(alt.Data(values=_pareto(search))).mark_line(color=BLUE, strokeWidth=1.5).encode(x=x, y=y)
    interval = (
        alt.Chart(alt.Data(values=[point for point in points if point["kind"] == packed]))
        .mark_rule(color=BLACK, strokeWidth=1.5)
        .encode(x=x, y=alt.Y("low:Q").scale(domain=[bottom - margin, top + margin], clamp=True), y2="high:Q")
    )
    goal = alt.Chart(alt.Data(values=[{"target": target, "text": f"quality target {target:.4g}"}]))
    rule = goal.mark_rule(color=GREEN, strokeDash=[6, 4], strokeWidth=2).encode(y=alt.Y("target:Q"))
    # Points may lie behind the words: a white edge keeps them legible.
    words = {"align": "right", "baseline": "top", "dx": -4, "dy": 5, "fontWeight": 600}
    edge, label = (
        goal.mark_text(**words, **paint).encode(x=alt.value("width"), y="target:Q", text="text:N")
        for paint in ({"stroke": "#ffffff", "strokeWidth": 4}, {"color": "#00694d"})
    )
    row = _chosen(search)
    kept = f"of the float32 network's {what}" if agreement else f"of the float32 {what}"
    finding = (
        f"{counted(len(search.front), 'combination')} measured on the search images. The chosen one has "
        f"{size(float(row['bits']) / 8)} (analytic: indices and codebooks alone) and keeps "
        f"{percent(float(row['relative_quality']))} {kept} there; its packed file has "
        f"{size(metrics['bytes']['packed'])} on disk and keeps {percent(metrics['relative_quality'], target)} on the "
        f"held-out images ({percent(low, target)} to {percent(high, target)})."
    )
    if below:
        finding += f" Below the scale, and drawn at its lower edge: {counted(below, 'point')}."
    layers = alt.layer(line, rule, interval, marks, edge, label)
    return make("Quality against size", finding, layers.properties(height=340))


def _point(search: Search, row: dict[str, str], kind: str) -> dict:
    return {
        "kind": kind,
        "search": search.name,
        "kB": significant(float(row["bits"]) / 8000),
        "share": significant(float(row["relative_quality"])),
        "kl": significant(float(row["kl"]), 3),
        "images": row["images"],
        "recipe": recipe(search.ks(row).values()),
    }


def _chosen(search: Search) -> dict[str, str]:
    return next(row for row in search.front if row["chosen"] == "1")


def chosen_ks(search: Search) -> dict[str, str]:
    """Number of shared values, or "dense", that the search chose for each layer."""
    return search.ks(_chosen(search))


def _is_uniform(model: Model, search: Search) -> bool:
    """Whether every combination has one k for all layers, but for layers of fewer weights."""
    weights = {layer["name"]: layer["weights"] for layer in model.layers}

    def is_one(ks: dict[str, str]) -> bool:
        numbers = {layer: int(k) for layer, k in ks.items() if k != "dense"}
        most = max(numbers.values(), default=0)
        return numbers.keys() == ks.keys() and all(k == min(most, weights[layer]) for layer, k in numbers.items())

    return all(is_one(search.ks(row)) for row in search.front)


def _pareto(search: Search) -> list[dict]:
    """Combinations that no smaller one equals, by ascending size, of those that were measured on most images."""
    best, line = -math.inf, []
    most = max(int(row["images"]) for row in search.front)
    whole = [row for row in search.front if int(row["images"]) == most]
    for row in sorted(whole, key=lambda row: (float(row["bits"]), -float(row["relative_quality"]))):
        share = float(row["relative_quality"])
        if share > best:
            best = share
            line.append({"kB": significant(float(row["bits"]) / 8000), "share": significant(share)})
    return line


def _told_apart(
    field: str, kinds: dict[str, tuple[str, str]], rows: list[dict], title: str | None = None, **legend: object
) -> dict[str, alt.Color | alt.Shape]:
    """Colour and shape of the kinds that occur in a field of the rows, with one legend below the chart."""
    shown = [kind for kind in kinds if any(row[field] == kind for row in rows)]
    below = alt.Legend(orient="bottom", title=title, **legend)

    def scaled(encoding: alt.Color | alt.Shape, place: int) -> alt.Color | alt.Shape:
        return encoding.scale(domain=shown, range=[kinds[kind][place] for kind in shown]).legend(below)

    return {"color": scaled(alt.Color(f"{field}:N"), 0), "shape": scaled(alt.Shape(f"{field}:N"), 1)}


def sensitivity(model: Model, search: Search) -> Chart | None:
    """What each layer alone costs: at every k that was profiled, else as predicted and measured by probes."""
    if model.sensitivity:
        rows = [
            {"layer": row["layer"], "x": row["k"], "kl": _shown_kl(row["kl"]), "exact": significant(float(row["kl"]))}
            for row in model.sensitivity
        ]
        title, order = "shared values k", sorted({row["x"] for row in rows}, key=int)
        least = min(rows, key=lambda row: int(row["x"]))["x"]
        few = [row for row in rows if row["x"] == least]
        worst, best = max(few, key=lambda row: row["exact"]), min(few, key=lambda row: row["exact"])
        finding = (
            f"With {least} shared values in one layer alone, {worst['layer']} costs most "
            f"({worst['exact']:.3g} nats) and {best['layer']} least ({best['exact']:.3g} nats)."
        )
    elif search.losses:
        rows = [
            {"layer": row["layer"], "x": x, "kl": _shown_kl(row[x]), "exact": significant(float(row[x]))}
            for row in search.losses
            for x in ("predicted", "measured")
        ]
        title, order = "loss of the layer alone", ["predicted", "measured"]
        measured = [row for row in rows if row["x"] == "measured"]
        worst, best = (pick(measured, key=lambda row: row["exact"]) for pick in (max, min))
        finding = (
            f"Shared alone, at the slope of the probes, {worst['layer']} costs most ({worst['exact']:.3g} nats) and "
            f"{best['layer']} least ({best['exact']:.3g} nats)."
        )
    else:
        return None
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect(stroke="#ffffff", strokeWidth=1)
        .encode(
            x=alt.X("x:O").sort(order).title(title).axis(labelAngle=0),
            y=alt.Y("layer:N").sort(layers).title(None),
            color=alt.Color("kl:Q")
            .scale(type="log", scheme="cividis", reverse=True)
            .legend(
                orient="bottom", title="KL, nats", gradientLength=150, format=".0e", tickCount=4, labelSeparation=8
            ),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("x:N").title(title),
                alt.Tooltip("exact:Q").title("KL, nats").format(".3g"),
            ],
        )
        .properties(height=(18 if len(layers) < 40 else 14) * len(layers))
    )
    return make("Sensitivity of each layer", f"{finding} Darker is worse.", chart)


def _shown_kl(text: str) -> float:
    return max(significant(float(text)), LEAST_KL)


def bits(model: Model, search: Search) -> Chart:
    """Bits a weight of each layer, its bar as wide as the layer's share of the weights."""
    total, ks = sum(layer["weights"] for layer in model.layers), chosen_ks(search)
    rows, left = [], 0.0
    for layer in model.layers:
        share = layer["weights"] / total
        rows.append(
            {
                "layer": layer["name"],
                "kind": _kind(layer),
                "left": significant(left, 7),
                "right": significant(left + share, 7),
                "share": significant(share),
                "bits": significant(bits_on_disk(search, layer)),
                "k": ks[layer["name"]],
            }
        )
        left += share
    kinds = dict(zip(dict.fromkeys(row["kind"] for row in rows), itertools.cycle(COLOURS)))
    highest = max(row["bits"] for row in rows)
    top = 1.2 * max(row["bits"] for row in rows if row["share"] >= min(VISIBLE, 1 / len(rows)))
    # Bars are cut off only where they would flatten all others.
    top = math.ceil(top if highest > 2 * top else highest)
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect(stroke="#ffffff", strokeWidth=0.7)
        .encode(
            x=alt.X("left:Q").title("share of the shared weights, layers in order").axis(format="%"),
            x2="right:Q",
            y=alt.Y("bits:Q").title("bits a weight, on disk").scale(domain=[0, top], clamp=True),
            y2=alt.datum(0),
            color=alt.Color("kind:N")
            .scale(domain=list(kinds), range=list(kinds.values()))
            .legend(orient="bottom", title=None, columns=1),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("k:N"),
                alt.Tooltip("bits:Q").title("bits a weight").format(".2f"),
                alt.Tooltip("share:Q").title("share of weights").format(".2%"),
            ],
        )
        .properties(height=260)
    )
    largest, most, fewest = (
        max(rows, key=lambda row: row["share"]),
        max(rows, key=lambda row: row["bits"]),
        min(rows, key=lambda row: row["bits"]),
    )
    finding = (
        f"Bits a weight go from {fewest['bits']:.2f} ({fewest['layer']}) to {most['bits']:.2f} ({most['layer']}). "
        f"The largest layer, {largest['layer']}, holds {percent(largest['share'])} of the weights at "
        f"{largest['bits']:.2f} bits."
    )
    above = sum(row["bits"] > top for row in rows)
    if above:
        finding += f" Bars cut off at the upper edge: {above}, of layers with few weights."
    return make("Bits of each layer", finding, chart)


def bits_on_disk(search: Search, layer: dict) -> float:
    """Bits a weight of a layer in the packed file, its codebook and scales included."""
    return 8 * nbytes(search, tensor_of_layer(layer["name"], search.layout.nbytes)) / layer["weights"]


def nbytes(search: Search, tensor: str) -> int:
    """Bytes of a tensor in the packed file."""
    return search.layout.nbytes[tensor]


def _kind(layer: dict) -> str:
    return f"{layer['type']}, grouped" if layer["groups"] > 1 else layer["type"]


def histogram(found: Histogram) -> Chart:
    """Histogram of one layer's weights, with its shared values below the axis."""
    counts = [
        {"left": significant(left), "right": significant(right), "count": int(count)}
        for left, right, count in zip(found.edges[:-1], found.edges[1:], found.counts, strict=True)
    ]
    values = [{"value": significant(float(value))} for value in found.values]
    x = alt.X("left:Q").title(f"weight{', relative to its row' if found.scaled else ''}")
    bars = (
        alt.Chart(alt.Data(values=counts))
        .mark_rect(color=SKY)
        .encode(
            x=x,
            x2="right:Q",
            y=alt.Y("count:Q").title("weights").axis(format="~s"),
            y2=alt.datum(0),
            tooltip=[alt.Tooltip("left:Q").title("from"), alt.Tooltip("right:Q").title("to"), alt.Tooltip("count:Q")],
        )
    )
    ticks = (
        alt.Chart(alt.Data(values=values))
        .mark_rule(color=VERMILLION, strokeWidth=1.2)
        .encode(
            x=alt.X("value:Q"),
            y=alt.value(146),
            y2=alt.value(160),
            tooltip=[alt.Tooltip("value:Q").title("shared value")],
        )
    )
    finding = (
        f"{found.role}: {found.weights:,} weights, {len(values)} shared values in use, from {found.values[0]:.3g} to "
        f"{found.values[-1]:.3g}."
    )
    return make(found.layer, finding, alt.layer(bars, ticks).properties(height=160))


def parts(search: Search) -> Chart:
    """Where the bytes of the packed file went."""
    names = {
        "indices": "indices",
        "codebooks": "codebooks",
        "scales": "scales of rows",
        "shifts": "folded shifts",
        "kept": "kept tensors",
        "header": "header",
    }
    sizes = search.sizes["bytes"]
    rows = [
        {
            "part": text,
            "bytes": sizes[part],
            "share": significant(sizes[part] / sizes["packed"]),
            "text": f"{size(sizes[part])}, {sizes[part] / sizes['packed']:.1%}",
        }
        for part, text in names.items()
        if sizes[part]
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("part:N").sort(list(names.values())).title(None))
    # Room for the text at the end of the longest bar.
    limit = 2 * max(row["bytes"] for row in rows)
    x = (
        alt.X("bytes:Q")
        .title("bytes in the packed file")
        .scale(domain=[0, limit], nice=False)
        .axis(format="~s", tickCount=5)
    )
    bars = base.mark_bar(color=BLUE).encode(x=x, tooltip=["part:N", alt.Tooltip("bytes:Q").format(","), "text:N"])
    texts = base.mark_text(align="left", dx=5).encode(x=x, text="text:N")
    most = max(rows, key=lambda row: row["bytes"])
    coding = "are entropy-coded" if search.sizes["format"] == "entropy" else "have a fixed width in each layer"
    finding = (
        f"The largest part of {sizes['packed']:,} bytes: {most['part']}, {percent(most['share'])}. The header takes "
        f"{sizes['header']:,} bytes. Indices {coding}."
    )
    return make("Where the bytes went", finding, alt.layer(bars, texts).properties(height=26 * len(rows)))


def losses(search: Search) -> Chart | None:
    """Predicted against measured loss of each layer alone; None where the search has no such table."""
    rows = [
        {
            "layer": row["layer"],
            "predicted": significant(float(row["predicted"])),
            "measured": significant(float(row["measured"])),
        }
        for row in search.losses
        if float(row["predicted"]) > 0 and float(row["measured"]) > 0
    ]
    if not rows:
        return None
    both = [row[column] for row in rows for column in ("predicted", "measured")]
    ends = (min(both), max(both))
    x = alt.X("predicted:Q").scale(type="log").title("predicted loss, nats").axis(format=".0e", tickCount=5)
    y = alt.Y("measured:Q").scale(type="log").title("measured loss, nats").axis(format=".0e", tickCount=5)
    line = (
        alt.Chart(alt.Data(values=[{"predicted": end, "measured": end} for end in ends]))
        .mark_line(color=GREY, strokeDash=[5, 4])
        .encode(x=x, y=y)
    )
    dots = (
        alt.Chart(alt.Data(values=rows))
        .mark_circle(color=BLUE, size=60, opacity=0.9)
        .encode(
            x=x,
            y=y,
            tooltip=["layer:N", alt.Tooltip("predicted:Q").format(".3g"), alt.Tooltip("measured:Q").format(".3g")],
        )
    )
    near = sum(1 / 2 <= row["measured"] / row["predicted"] <= 2 for row in rows)
    correlation = search.recipe.get("predicted_loss_rank_correlation")
    finding = (
        f"{near} of {len(rows)} layers lie within a factor of two of the prediction (the dashed line is equality). "
        "Both are of the layer alone at the slope of the probes; their ratio, from 1/10 to 10, then corrected the "
        "predictions."
    )
    if correlation is not None:
        finding = f"Spearman's rank correlation is {correlation:.3f}. {finding}"
    hidden = len(search.losses) - len(rows)
    if hidden:
        finding += f" {hidden} layers with a loss of 0 are left out."
    return make("Predicted against measured loss", finding, alt.layer(line, dots).properties(height=320))


def trace(search: Search) -> Chart:
    """Combinations in the order in which they were measured."""
    rows = []
    for row in sorted(search.front, key=lambda row: int(row["evaluation"])):
        state = "chosen" if row["chosen"] == "1" else "quality passes" if row["met"] == "1" else "quality fails"
        rows.append(
            {
                "number": int(row["evaluation"]),
                "kB": significant(float(row["bits"]) / 8000),
                "share": significant(float(row["relative_quality"])),
                "kl": significant(float(row["kl"]), 3),
                "images": row["images"],
                "state": state,
            }
        )
    kinds = {
        "quality passes": (BLUE, "circle"),
        "quality fails": (ORANGE, "cross"),
        "chosen": (VERMILLION, "diamond"),
    }
    x = (
        alt.X("number:Q")
        .title("evaluation")
        .axis(format="d", tickMinStep=1)
        .scale(domain=[0, len(rows) + 1], nice=False)
    )
    y = alt.Y("kB:Q").title("analytic size, kB").scale(zero=False)
    base = alt.Chart(alt.Data(values=rows))
    line = base.mark_line(color="#c4c4c4", strokeWidth=1).encode(x=x, y=y)
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x,
        y=y,
        **_told_apart("state", kinds, rows, columns=1, symbolSize=80),
        tooltip=[
            alt.Tooltip("number:Q").title("evaluation"),
            alt.Tooltip("kB:Q").title("analytic size, kB").format(",.1f"),
            alt.Tooltip("share:Q").title("share of float32").format(".2%"),
            alt.Tooltip("kl:Q").title("KL, nats"),
            alt.Tooltip("images:N").title("search images looked at"),
            alt.Tooltip("state:N").title("search images"),
        ],
    )
    chosen = next(row for row in rows if row["state"] == "chosen")
    finding = (
        f"{counted(len(rows), 'evaluation')}; the chosen combination was number {chosen['number']}, of "
        f"{size(1000 * chosen['kB'])}."
    )
    if len({row["images"] for row in rows}) > 1:
        finding += " What the first images ruled out was measured on fewer."
    return make("Search trace", finding, alt.layer(line, dots).properties(height=260))


def usage(search: Search, measure: str) -> Chart:
    """Seconds, or peak memory in MiB, of each rule that the search's result needed."""
    rows = [
        {"rule": rule, "value": significant(value), "text": duration(value) if measure == "seconds" else memory(value)}
        for rule, found in search.usage.items()
        if (value := getattr(found, measure)) is not None
    ]
    order = [row["rule"] for row in sorted(rows, key=lambda row: -row["value"])]
    title = "seconds, jobs in sum" if measure == "seconds" else "peak resident memory, MiB"
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("rule:N").sort(order).title(None))
    limit = 1.6 * max((row["value"] for row in rows), default=1)
    x = alt.X("value:Q").title(title).scale(domain=[0, limit], nice=False).axis(tickCount=4)
    bars = base.mark_bar(color=BLUE if measure == "seconds" else GREEN).encode(x=x, tooltip=["rule:N", "text:N"])
    texts = base.mark_text(align="left", dx=5).encode(x=x, text="text:N")
    largest = max(rows, key=lambda row: row["value"], default=None)
    if measure == "seconds":
        total = sum(row["value"] for row in rows)
        finding = f"All rules together took {duration(total)}"
        finding += f"; {largest['rule']} took longest, {largest['text']}." if largest else "."
    else:
        finding = (
            f"{largest['rule']} took most: {largest['text']}. Memory is sampled, so of short jobs it is too low."
            if largest
            else "No job was long enough to measure."
        )
    heading = "Time by rule" if measure == "seconds" else "Peak memory by rule"
    return make(heading, finding, alt.layer(bars, texts).properties(height=22 * len(rows)))


def comparison(results: list[dict]) -> Chart:
    """Quality kept against the rate on disk, of all models and searches of a study; `results` are their metrics."""
    rows = [
        {
            "model": result["model"],
            "search": result["search"],
            "rate": significant(result["compression_rate"]["on_disk"]),
            "share": significant(result["relative_quality"]),
            "low": significant(result["relative_quality_ci95"][0]),
            "high": significant(result["relative_quality_ci95"][1]),
            "verdict": result["verdict"],
        }
        for result in results
    ]
    shapes = {"met": "circle", "undecided": "diamond", "missed": "cross"}
    verdicts = [verdict for verdict in shapes if any(row["verdict"] == verdict for row in rows)]
    names = list(dict.fromkeys(row["model"] for row in rows))
    base = alt.Chart(alt.Data(values=rows))
    domain = [min(row["low"] for row in rows) - 0.002, max(row["high"] for row in rows) + 0.002]
    x = alt.X("rate:Q").title("compression rate, on disk").scale(zero=False, padding=20).axis(tickCount=8)
    y = alt.Y("share:Q").title("quality kept, share of float32").axis(format="~%", tickCount=8).scale(domain=domain)
    interval = base.mark_rule(color=GREY).encode(x=x, y=alt.Y("low:Q").scale(domain=domain), y2="high:Q")
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color("model:N")
        .scale(domain=names, range=[BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK])
        .legend(orient="bottom", title="model", columns=2, symbolType="square", symbolSize=90, symbolOpacity=1),
        shape=alt.Shape("verdict:N")
        .scale(domain=verdicts, range=[shapes[verdict] for verdict in verdicts])
        .legend(orient="bottom", title="quality target", columns=3, symbolSize=90),
        tooltip=[
            "model:N",
            "search:N",
            alt.Tooltip("rate:Q").title("rate on disk").format(".2f"),
            alt.Tooltip("share:Q").title("share of float32").format(".2%"),
            alt.Tooltip("low:Q").title("95 % interval from").format(".2%"),
            alt.Tooltip("high:Q").title("to").format(".2%"),
            "verdict:N",
        ],
    )
    best = max(rows, key=lambda row: row["rate"])
    finding = (
        f"{counted(len(rows), 'packed file')} of {counted(len({row['model'] for row in rows}), 'model')}. "
        "The highest rate on disk is "
        f"{best['rate']:.2f}x ({best['model']}, {best['search']}), which keeps {percent(best['share'])}. Lines are "
        "95 % intervals on held-out images."
    )
    return make("All results", finding, alt.layer(interval, dots).properties(height=340))
