"""The page of one model: verdicts, then everything about the search that the reader picks."""

import base64
import io
import math
from collections import Counter
from html import escape

import yaml
from PIL import Image

from wshare.data.stored import image_at
from wshare.files.hdf5 import open_h5
from wshare.models.coverage import told
from wshare.names import layer_of_tensor, tensor_of_layer
from wshare.packed.format import read_shared
from wshare.quantize.codebooks import Shared
from wshare.report import charts
from wshare.report.charts import Chart
from wshare.report.codings import entropy_bytes, fixed_bytes, zipped_bytes
from wshare.report.histograms import histogram
from wshare.report.page import card, figure, listing, page, table
from wshare.report.quality import is_agreement, reasons, written
from wshare.report.results import Model, Search
from wshare.report.texts import counted, duration, memory, percent, recipe, shape, size, told_skipped
from wshare.tasks.classes import class_names, named
from wshare.tasks.table import task_of
from wshare.tasks.task import AGREEMENT, own_figures

# The best first.
VERDICTS = {"met": "✔ target met", "undecided": "? undecided", "missed": "✘ target missed"}
IMAGES, IMAGE_SIDE = 8, 128


def model_page(model: Model, settings: dict, commit: str) -> tuple[str, dict[str, Chart]]:
    """HTML page of a model, and its charts by name, each `<search>/<chart>`.

    `settings` is the configuration that gives this model's results again, `commit` the program's.
    """
    found: dict[str, Chart] = {}
    articles = [_article(model, search, settings, commit, found) for search in model.searches]
    baseline, kind = model.baseline["held_out"], task_of(model.spec)
    first = own_figures(kind)[0]
    quality = (
        f"no labels, so it is held against the float32 network's own {kind.PREDICTED},"
        if is_agreement(model.baseline)
        else f"float32 {first.label} {written(first, baseline[first.key])}"
    )
    lead = (
        f"{escape(model.searches[0].metrics['dataset'])}: {model.spec['parameters']:,} parameters; {quality} on "
        f"{counted(baseline['images'], 'held-out image')}."
    )
    body = (
        '<h2>Verdict</h2>\n<div class="cards">\n'
        + "\n".join(_card(model, search) for search in model.searches)
        + f'\n</div>\n<div id="details">{_picker(model)}</div>\n'
        + "\n".join(articles)
    )
    data = {"shown": _best(model).name, "metrics": {search.name: search.metrics for search in model.searches}}
    footer = f"Made by wshare {escape(model.searches[0].metrics['versions']['wshare'])}. Program: {escape(commit)}."
    html = page(f"{model.name}: compressed", escape(model.name), lead, body, footer, data, found)
    return html, found


def _best(model: Model) -> Search:
    """The search shown first: of the best verdict, and of those the smallest file."""
    order = list(VERDICTS)
    return min(model.searches, key=lambda s: (order.index(s.metrics["verdict"]), s.metrics["bytes"]["packed"]))


def _picker(model: Model) -> str:
    if len(model.searches) == 1:
        return ""
    options = "".join(
        f'<option value="{escape(search.name)}">{escape(_titled(search))}</option>' for search in model.searches
    )
    return f'<p class="picker"><label>Search shown below: <select id="search">{options}</select></label></p>'


def _titled(search: Search) -> str:
    """The search's name, with its method where the name does not say it."""
    return search.name if search.method in search.name else f"{search.name} ({search.method})"


def _card(model: Model, search: Search) -> str:
    metrics = search.metrics
    nbytes, rate = metrics["bytes"], metrics["compression_rate"]
    (low, high), target = metrics["relative_quality_ci95"], metrics["quality_target"]
    head = (
        f'<span>{escape(search.name)}</span><span class="verdict {metrics["verdict"]}">'
        f"{VERDICTS[metrics['verdict']]}</span>"
    )
    big = (
        f"{size(nbytes['float32'])} → {size(nbytes['packed'])}<br>{rate['on_disk']:.2f}x <small>on disk</small> "
        f"<small>({rate['analytic']:.2f}x analytic)</small>"
    )
    figures = own_figures(task_of(model.spec))
    if is_agreement(metrics):
        quality = [(f"{AGREEMENT} with float32", written(figures[0], metrics["compressed"][figures[0].key]))]
    else:
        quality = [
            (
                escape(figure.label),
                " → ".join(written(figure, metrics[network][figure.key]) for network in ("float32", "compressed")),
            )
            for figure in figures
        ]
        quality.append(("share of float32", percent(metrics["relative_quality"], metrics["quality_target"])))
    float16 = nbytes["float32"] / 2
    peaks = [used.memory for used in search.usage.values() if used.memory is not None]
    rows = [
        *quality,
        ("95 % interval", f"{percent(low, target)} to {percent(high, target)}"),
        ("information lost", percent(metrics["compressed"]["relative_kl"])),
        ("best constant network", percent(metrics["constant"]["relative_quality"])),
        ("quality target", percent(metrics["quality_target"])),
        ("bits a weight", f"{metrics['bits_per_weight']:.2f}"),
        ("float32 file", f"{nbytes['float32']:,} B"),
        ("half of it (float16)", f"{float16:,.0f} B, {float16 / nbytes['packed']:.2f}x"),
        ("packed file", f"{nbytes['packed']:,} B"),
        ("held-out images", f"{metrics['compressed']['images']:,}"),
        ("time, all rules", duration(sum(used.seconds for used in search.usage.values()))),
        ("peak memory", memory(max(peaks, default=None))),
    ]
    button = f'<button type="button" data-show="{escape(search.name)}">Show details</button>'
    return card(rows, head, big, button if len(model.searches) > 1 else "", search.name)


def _article(model: Model, search: Search, settings: dict, commit: str, found: dict[str, Chart]) -> str:
    """All sections of one search; its charts are added to `found`."""

    def drawn(name: str, chart: Chart | None, missing: str = "", heading: bool = False) -> str:
        if chart is None:
            return f"<p>{escape(missing)}</p>"
        found[f"{search.name}/{name}"] = chart
        return figure(f"{search.name}/{name}", chart, heading)

    shared, _ = read_shared(search.packed)
    times, memories = (drawn(*usage, heading=True) for usage in _usage_charts(search))
    sections = {
        "Quality against size": drawn("front", charts.front(model, search)),
        "Layers": _layers(model, search),
        "Sensitivity of each layer": drawn(
            "sensitivity",
            charts.sensitivity(model, search),
            "This search measured no layer alone, and no other search profiled the layers.",
        ),
        "Bits of each layer": drawn("bits", charts.bits(model, search)),
        "Weights and shared values": _histograms(model, search, shared, drawn),
        "Where the bytes went": drawn("bytes", charts.parts(search)) + _codings(search, shared),
        "Predicted against measured loss": drawn(
            "losses", charts.losses(search), "This search measured no layer alone, so there is no prediction to check."
        ),
        "Search trace": drawn(
            "trace",
            charts.trace(search) if len(search.front) > 1 else None,
            "One combination was measured, the chosen one.",
        ),
        "Held-out confirmation": _held_out(model, search, settings),
        "Time and memory": f'<div class="row">{times}{memories}</div>{_usage_table(search)}',
        "Reproduce it": _reproduce(model, search, settings, commit),
        "Honest limits": _limits(model, search),
    }
    content = "\n".join(
        f'<section><h2 id="{_id(search, title)}">{title}</h2>\n{text}\n</section>' for title, text in sections.items()
    )
    return f'<article data-search="{escape(search.name)}">\n{content}\n</article>'


def _usage_charts(search: Search) -> list[tuple[str, Chart]]:
    return [("time", charts.usage(search, "seconds")), ("memory", charts.usage(search, "memory"))]


def _id(search: Search, title: str) -> str:
    return f"{escape(search.name)}-{title.lower().replace(' ', '-')}"


def _layers(model: Model, search: Search) -> str:
    names = {parameter["name"] for parameter in model.parameters}
    layers = {tensor_of_layer(layer["name"], names): layer for layer in model.layers}
    rows, others = [], Counter()
    for parameter in model.parameters:
        layer = layers.get(parameter["name"])
        if layer is None and len(parameter["shape"]) < 2:
            others[parameter["reason"]] += 1
        else:
            rows.append(_layer_row(search, parameter, layer))
    columns = [
        ("layer", ""),
        ("type", ""),
        ("shape", ""),
        ("weights", "number"),
        ("k", "number"),
        ("bits a weight", "number"),
        ("bytes", "number"),
        ("share of file", "number"),
        ("status", ""),
        ("reason", "text"),
    ]
    rest = "; ".join(f"{counted(count, 'tensor')}, {escape(reason)}" for reason, count in sorted(others.items()))
    listed = sum(row[6][1] for row in rows)
    header = search.metrics["bytes"]["header"]
    identity = f"layers-{search.name}"
    return (
        f"<p>{escape(told(model.parameters))}. "
        f"Bytes are those of the packed file: indices, codebook and scales of each layer, {listed:,} in sum. "
        f"Not listed are small tensors{f' ({rest})' if rest else ''}, and names, shapes and hashes ({header:,} bytes "
        "of header, of which a few belong to each layer).</p>"
        + table(identity, columns, rows, f"Layers of {model.name}, {search.name}", tall=True)
        + f'<p><button type="button" data-csv="{escape(identity)}" '
        f'data-name="{escape(f"{model.name}-{search.name}-layers.csv")}">Download as CSV</button></p>'
    )


def _layer_row(search: Search, parameter: dict, layer: dict | None) -> list[tuple[str, object]]:
    """Cells of one parameter; `layer` is the one whose weight it is, if it can be shared."""
    name, count = parameter["name"], math.prod(parameter["shape"])
    k = charts.chosen_ks(search)[layer["name"]] if layer else "dense"
    kept = layer is not None and k == "dense"
    status = "kept" if kept else parameter["status"]
    reason = "the search kept it dense" if kept else parameter["reason"]
    kind = layer["type"] + (f", {layer['groups']} groups" if layer["groups"] > 1 else "") if layer else "-"
    used = charts.nbytes(search, name)
    share = used / search.metrics["bytes"]["packed"]
    return [
        (escape(layer_of_tensor(name)), layer_of_tensor(name)),
        (escape(kind), kind),
        (shape(parameter["shape"]), "x".join(map(str, parameter["shape"]))),
        (f"{count:,}", count),
        ("-", "") if k == "dense" else (k, k),
        (f"{8 * used / count:.2f}", round(8 * used / count, 4)),
        (f"{used:,}", used),
        (percent(share), round(share, 6)),
        (escape(status), status),
        (escape(reason), reason),
    ]


def _codings(search: Search, shared: dict[str, Shared]) -> str:
    """How large the indices and the file are, and would be if they were coded otherwise."""
    # Tied tensors are one object, and stored once.
    layers = list({id(layer): layer for layer in shared.values()}.values())
    sizes = search.sizes["bytes"]
    stored = "entropy-coded" if search.sizes["format"] == "entropy" else "fixed width"
    rows = [
        (f"indices as stored, {stored}", sizes["indices"]),
        ("indices at ceil(log2 k) bits each", fixed_bytes(layers)),
        ("indices at the entropy of each layer", entropy_bytes(layers)),
        ("packed file", sizes["packed"]),
        ("packed file, zipped (deflate)", zipped_bytes(search.packed)),
    ]
    return listing([(name, f"{nbytes:,.0f} B") for name, nbytes in rows], "Indices coded otherwise", "number")


def _histograms(model: Model, search: Search, tensors: dict[str, Shared], drawn) -> str:
    shared = [layer for layer in model.layers if tensor_of_layer(layer["name"], tensors) in tensors]
    if not shared:
        return "<p>The search kept all layers dense: there are no shared values.</p>"
    names = {layer["name"] for layer in shared}
    roles: dict[str, list[str]] = {}
    loss = {name: value for name, value in _loss_alone(model, search).items() if name in names}
    if loss:
        roles.setdefault(min(loss, key=loss.__getitem__), []).append("least sensitive layer")
        roles.setdefault(max(loss, key=loss.__getitem__), []).append("most sensitive layer")
    largest = max(shared, key=lambda layer: layer["weights"])["name"]
    roles.setdefault(largest, []).append("largest layer")
    figures = []
    for number, (name, words) in enumerate(roles.items(), start=1):
        role = " and ".join(words)
        shared_tensor = tensors[tensor_of_layer(name, tensors)]
        found = histogram(name, role[0].upper() + role[1:], model.weights, shared_tensor, search.layout)
        figures.append(drawn(f"weights_{number}", charts.histogram(found), "", heading=True))
    return (
        "<p>Histograms of the float32 weights; the lines at the bottom are the values that they share. Where rows have "
        "scales, both are relative to them, with the batch norm folded in.</p>"
        '<div class="row">' + "".join(figures) + "</div>"
    )


def _loss_alone(model: Model, search: Search) -> dict[str, float]:
    """Divergence of each layer alone: at its fewest shared values where profiled, else as a probe measured it."""
    if model.sensitivity:
        fewest = min(int(row["k"]) for row in model.sensitivity)
        return {row["layer"]: float(row["kl"]) for row in model.sensitivity if int(row["k"]) == fewest}
    return {row["layer"]: float(row["measured"]) for row in search.losses}


def _held_out(model: Model, search: Search, settings: dict) -> str:
    head = "".join(f'<th scope="col" class="number">{split} images</th>' for split in ("search", "held-out"))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{first}</td><td class="number">{second}</td></tr>'
        for name, first, second in _on_both_splits(model, search)
    )
    compared = (
        '<div class="scroll" role="region" aria-label="Search images against held-out images" tabindex="0">'
        f'<table class="free"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    told = told_skipped(model.baseline)
    skipped = f" Unreadable images left out: {told}." if told else ""
    return (
        "<p>The search saw the search images alone. The held-out images were looked at once, with the packed file "
        f"loaded anew.{skipped}</p>{compared}{_basis(model, search)}{_changed(model, search, settings)}"
    )


def _basis(model: Model, search: Search) -> str:
    """What the verdict rests on, so that a reader can work it out again."""
    metrics = search.metrics
    lost = [row for row in metrics["classes"] if row["compressed"] < row["float32"]]
    names = class_names(model.spec.get("categories"), None, [])
    told = [
        *reasons(metrics),
        f"one output for all images would keep {percent(metrics['constant']['relative_quality'])} and lose "
        f"{metrics['constant']['kl']:.4g} nats; the packed file loses "
        f"{percent(metrics['compressed']['relative_kl'])} of them",
    ]
    if metrics["temperature"] != 1:
        told.append(
            f"what float32 expects goes by its outputs at the temperature {metrics['temperature']:g}, fitted on "
            "the labels of the search images"
        )
    if lost:
        classes = (
            f"{named(str(row['class']), names)} {row['float32']:,} to {row['compressed']:,} of {row['images']:,}"
            for row in lost
        )
        told.append(f"classes that lost the largest shares of right images: {', '.join(classes)}")
    return "<ul>" + "".join(f"<li>{escape(line[0].upper() + line[1:])}.</li>" for line in told) + "</ul>"


def _on_both_splits(model: Model, search: Search) -> list[tuple[str, str, str]]:
    """Name, number on the search images and number on the held-out images."""
    metrics, on_search = search.metrics, search.recipe["on_search_images"]
    baseline, after = model.baseline, search.metrics["compressed"]
    (low, high), target = metrics["relative_quality_ci95"], metrics["quality_target"]
    least, most = metrics["expected_relative_quality_ci95"]
    images = ("images", f"{baseline['search']['images']:,}", f"{after['images']:,}")
    interval = ("95 % interval of that share", "", f"{percent(low, target)} to {percent(high, target)}")
    expected = (
        "share that float32 expects to be kept",
        percent(on_search["expected"]),
        f"{percent(metrics['expected_relative_quality'], target)} "
        f"({percent(least, target)} to {percent(most, target)})",
    )
    divergence = ("divergence (KL), nats", f"{on_search['kl']:.4g}", f"{after['kl']:.4g}")
    kind = task_of(model.spec)
    quality, *_ = own_figures(kind)
    chosen, packed = (written(quality, found[quality.key]) for found in (on_search, after))
    if is_agreement(metrics):
        return [images, (f"{AGREEMENT} with float32", chosen, packed), interval, expected, divergence]
    before = (written(quality, found[quality.key]) for found in (baseline["search"], metrics["float32"]))
    return [
        images,
        (f"float32 {quality.label}", *before),
        (f"compressed {quality.label}", chosen, packed),
        (
            "share of float32",
            percent(on_search["relative_quality"], target),
            percent(metrics["relative_quality"], target),
        ),
        interval,
        expected,
        *(
            (figure.label, written(figure, on_search[figure.key]), written(figure, after[figure.key]))
            for figure in kind.FIGURES
            if figure.compares
        ),
        divergence,
    ]


def _changed(model: Model, search: Search, settings: dict) -> str:
    """What changed on the held-out images, and up to eight of those where something did."""
    words, changed = task_of(model.spec).changes(search.predictions, model.spec, _source(search, settings))
    if not changed:
        return f"<p>{escape(words)}</p>"
    items = []
    with open_h5(model.held_out_images, "images") as file:
        for place, lines in changed[:IMAGES]:
            name, text = search.predictions[place]["image"], "<br>".join(map(escape, lines))
            source = _thumbnail(image_at(file, place))
            items.append(
                f'<li><img src="{source}" alt="Held-out image {escape(name)}">{text}<br>'
                f"<small>{escape(name)}</small></li>"
            )
    shown = "" if len(changed) <= IMAGES else f" The first {IMAGES} in the file's random order:"
    return f'<p>{escape(words)}{shown}</p><ul class="images">{"".join(items)}</ul>'


def _source(search: Search, settings: dict) -> str | None:
    """Source of the search's dataset, where the configuration names it."""
    return settings.get("datasets", {}).get(search.metrics["dataset"], {}).get("source")


def _thumbnail(pixels) -> str:
    """A small image as a data address: uint8 [C, H, W], grey or colour."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    small = max(image.size) < IMAGE_SIDE
    if small:
        factor = IMAGE_SIDE // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _usage_table(search: Search) -> str:
    columns = [("rule", ""), ("jobs", "number"), ("seconds", "number"), ("peak memory, MiB", "number")]
    rows = [
        [
            (escape(rule), rule),
            (str(used.jobs), used.jobs),
            (f"{used.seconds:.1f}", used.seconds),
            ("-", "") if used.memory is None else (f"{used.memory:.0f}", used.memory),
        ]
        for rule, used in search.usage.items()
    ]
    metrics = search.metrics
    words = (
        f"<p>{counted(metrics['evaluations'], 'combination')} measured, "
        f"{counted(metrics['images_forwarded'], 'image')} forwarded. Rules that several searches of a model "
        "share stand in full here. Times depend on the machine and its load.</p>"
    )
    return words + table(f"usage-{search.name}", columns, rows, f"Time and memory of {search.name}")


def _reproduce(model: Model, search: Search, settings: dict, commit: str) -> str:
    metrics, identity = search.metrics, f"config-{search.name}"
    name, configuration = f"{model.name}.yaml", yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    command = f"snakemake --cores all --configfile {name} -- results/{model.name}/search/{search.name}/metrics.json"
    hashes = [(key.replace("_", " "), f"<code>{value}</code>") for key, value in metrics["sha256"].items()]
    versions = ", ".join(f"{package} {version}" for package, version in metrics["versions"].items())
    rows = [
        ("seed", str(metrics["seed"])),
        ("model", escape(model.spec["origin"])),
        (
            "recipe, layer by layer",
            escape(recipe(charts.chosen_ks(search).values(), 200)),
        ),
        ("versions", escape(versions)),
        ("program", escape(commit)),
        *((f"SHA-256, {key}", text) for key, text in hashes),
    ]
    return (
        f"<p>Save the configuration as <code>{escape(name)}</code> and run:</p>"
        f'<pre tabindex="0"><code>{escape(command)}</code></pre>'
        f'<pre class="tall" tabindex="0"><code id="{escape(identity)}">{escape(configuration)}</code></pre>'
        f'<p><button type="button" data-text="{escape(identity)}" data-name="{escape(name)}">Save the configuration'
        f"</button></p>{listing(rows, 'What it was made from', 'hash')}"
        "<p>Cite: the wshare developers, wshare; and E. Dupuis, D. Novo, I. O'Connor, A. Bosio, “A Heuristic "
        "Exploration of Retraining-free Weight-Sharing for CNN Compression”, ASP-DAC 2022, "
        "doi 10.1109/ASP-DAC52403.2022.9712487 (CITATION.cff).</p>"
    )


def _limits(model: Model, search: Search) -> str:
    metrics = search.metrics
    count = metrics["compressed"]["images"]
    labels = (
        f" The images have no labels: what is measured is {AGREEMENT} with float32, not whether it is right."
        if is_agreement(metrics)
        else ""
    )
    types = " and ".join(sorted({escape(layer["type"]) for layer in model.layers}))
    return (
        "<ul><li>Weight sharing saves storage and bandwidth, not time: stock PyTorch computes with the expanded "
        "weights, so the loaded network is as large in memory and as fast as before.</li>"
        f"<li>The verdict rests on {count:,} held-out images of {escape(metrics['dataset'])}; one image is "
        f"{percent(1 / count)} of them. It holds for images like these, and for all of them together, not for each "
        f"kind.{labels}</li>"
        "<li>The analytic rate counts indices and codebooks alone (for entropy-coded files ideal code lengths); only "
        "the rate on disk is what is stored.</li>"
        f"<li>Only weights of {types} layers are shared; activations stay float32.</li></ul>"
    )
