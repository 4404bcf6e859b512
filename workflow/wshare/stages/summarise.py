"""The block that a run ends with: what was won, what it cost, where it lies."""

from pathlib import Path

from wshare.errors import FormatError
from wshare.files.atomic import remedy, write_text
from wshare.files.sealed import check_origin, read_json, sha256_file
from wshare.files.tables import write_table
from wshare.report.texts import counted, size, told_skipped


def summarise(metrics: list[Path], baseline: list[Path], summary: Path, table: Path) -> None:
    """Write a block of text for each model with a paragraph for each of its searches, and a table of all.

    Each metrics.json has its search's recipe.json beside it; `baseline` holds each model's baseline/metrics.json.
    """
    results = [(read_json(path), path.parent) for path in metrics]
    baselines = {path.parents[1]: read_json(path) for path in baseline}
    for path, (result, folder) in zip(metrics, results, strict=True):
        reference = folder.parents[1] / "baseline" / "metrics.json"
        if not baselines[folder.parents[1]]["sha256"].items() <= result["sha256"].items():
            raise FormatError(f"{path}: of another model or other images than {reference}; {remedy(reference)}")
    by_model: dict[str, list[tuple[dict, Path]]] = {}
    for result, folder in results:
        by_model.setdefault(result["model"], []).append((result, folder))
    blocks = [
        "\n".join(
            [
                heading(found[0][0], baselines[found[0][1].parents[1]]),
                *(paragraph(*entry) for entry in found),
                f"  report: {found[0][1].parents[1]}/report/index.html",
                f"  next: {advice(found)}",
            ]
        )
        for found in by_model.values()
    ]
    last = f"all as a table: {table}\nall side by side: {table.parent}/report/index.html"
    write_text(summary, "\n\n".join([*blocks, last]) + "\n")
    rows = [row(result) for result, _ in results]
    write_table(table, list(rows[0]), rows)


def advice(found: list[tuple[dict, Path]]) -> str:
    """What to run next, given the results of a model's searches."""
    met = [(result["bytes"]["packed"], folder) for result, folder in found if result["verdict"] == "met"]
    if met:
        return f"python -c \"import wshare; print(wshare.load_packed('{min(met)[1]}/packed.safetensors').keys())\""
    undecided = [entry for entry in found if entry[0]["verdict"] == "undecided"]
    # The search that is nearest to its target.
    result, folder = max(
        undecided or found, key=lambda entry: entry[0]["relative_quality"] - entry[0]["quality_target"]
    )
    search = f"searches.{result['search']}"
    recipe = folder / "recipe.json"
    rate = read_json(recipe)["settings"]["options"].get("compression_rate")
    check_origin(folder / "metrics.json", result["sha256"], {"recipe": sha256_file(recipe)})
    if rate is not None:
        # A search to a size goes neither by the target nor by the confidence.
        change = f"lower {search}.options.compression_rate (now {rate:g})"
    elif undecided:
        change = f"raise {search}.confidence"
    else:
        change = f"raise {search}.confidence, or lower {search}.quality_target"
    images = f"give datasets.{result['dataset']}.split.held_out more images, or " if undecided else ""
    return f"{images}{change}, and run again"


def row(result: dict) -> dict:
    """One line of the table."""
    low, high = result["relative_quality_ci95"]
    seconds = result["seconds"]
    return {
        "model": result["model"],
        "search": result["search"],
        "measure": result["measure"],
        "quality_target": result["quality_target"],
        "verdict": result["verdict"],
        "float32_bytes": result["bytes"]["float32"],
        "packed_bytes": result["bytes"]["packed"],
        "rate_on_disk": round(result["compression_rate"]["on_disk"], 3),
        "rate_analytic": round(result["compression_rate"]["analytic"], 3),
        "bits_per_weight": round(result["bits_per_weight"], 3),
        "held_out_images": result["float32"]["images"],
        "float32_top1": round(result["float32"]["top1"], 5),
        "packed_top1": round(result["compressed"]["top1"], 5),
        "relative_quality": round(result["relative_quality"], 5),
        "ci95_low": round(low, 5),
        "ci95_high": round(high, 5),
        "kl": float(f"{result['compressed']['kl']:.4g}"),
        "evaluations": result["evaluations"],
        "images_forwarded": result["images_forwarded"],
        # A search by rate_distortion is a stage of another name.
        "search_seconds": round(seconds.get("search", seconds.get("search_rate_distortion")), 1),
    }


def heading(result: dict, baseline: dict) -> str:
    """The model's name and its quality before compression."""
    told = told_skipped(baseline)
    skipped = f"; unreadable images left out: {told}" if told else ""
    dense = result["float32"]
    quality = "no labels" if result["measure"] == "agreement" else f"top-1 {dense['top1']:.2%}"
    return (
        f"{result['model']} on {result['dataset']}: float32 file {size(result['bytes']['float32'])}, "
        f"{quality} on {dense['images']} held-out images{skipped}"
    )


def paragraph(result: dict, folder: Path) -> str:
    """One search: sizes, rates, quality, verdict, files."""
    rate = result["compression_rate"]
    return "\n".join(
        [
            f"  {result['search']}: {size(result['bytes']['float32'])} -> {size(result['bytes']['packed'])}, "
            f"{rate['on_disk']:.2f}x on disk ({rate['analytic']:.2f}x analytic, indices and codebooks alone), "
            f"{result['bits_per_weight']:.2f} bits per weight",
            f"    {_quality(result)}",
            f"    quality target {result['quality_target']:.2%} {result['verdict'].upper()}; "
            f"{counted(result['evaluations'], 'evaluation')}, {result['images_forwarded']:,} images forwarded",
            f"    files: {folder}/packed.safetensors, dense.safetensors, metrics.json, recipe.json",
        ]
    )


def _quality(result: dict) -> str:
    before, after = result["float32"], result["compressed"]
    low, high = result["relative_quality_ci95"]
    interval = f"95 % interval {low:.2%} to {high:.2%}"
    if result["measure"] == "agreement":
        # Against the float32 network's own classes its top-1 is 100 %: true of any network, so it tells nothing.
        return (
            f"agreement with float32 {after['top1']:.2%} on {after['images']} held-out images (no labels), {interval}"
        )
    share = f"{result['relative_quality']:.2%} of float32"
    return f"top-1 {before['top1']:.2%} -> {after['top1']:.2%}: {share}, {interval}"
