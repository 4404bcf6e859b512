"""The block that a run ends with: what was won, what it cost, where it lies."""

from dataclasses import dataclass
from pathlib import Path

from wshare.errors import FormatError
from wshare.files.atomic import remedy, write_text
from wshare.files.sealed import check_origin, check_sha256, read_json
from wshare.files.tables import write_table
from wshare.report.quality import in_a_line, is_agreement, reasons
from wshare.report.texts import counted, size, told_skipped
from wshare.tasks.table import task_of
from wshare.tasks.task import own_figures


@dataclass(frozen=True)
class Entry:
    """One search of one model: its verdict, what it took, and where its files lie."""

    result: dict
    timings: dict
    recipe: dict
    baseline: dict
    folder: Path


def summarise(
    metrics: list[Path],
    timings: list[Path],
    recipes: list[Path],
    baselines: list[Path],
    summary: Path,
    summary_table: Path,
) -> None:
    """Write a block of text for each model with a paragraph for each of its searches, and a table of all.

    The lists have a file for each search of each model, in one order; of a model all are next to one another.
    """
    files = zip(metrics, timings, recipes, baselines, strict=True)
    entries = [read_entry(*paths) for paths in files]
    by_model: dict[str, list[Entry]] = {}
    for entry in entries:
        by_model.setdefault(entry.result["model"], []).append(entry)
    blocks = [
        "\n".join(
            [
                heading(found[0].result, found[0].baseline),
                *(paragraph(entry.result, entry.folder) for entry in found),
                f"  report: {found[0].folder.parents[1]}/report/index.html",
                f"  next: {advice(found)}",
            ]
        )
        for found in by_model.values()
    ]
    last = f"all as a table: {summary_table}\nall side by side: {summary_table.parent}/report/index.html"
    write_text(summary, "\n\n".join([*blocks, last]) + "\n")
    rows = [row(entry) for entry in entries]
    # Networks of other tasks have other columns of quality.
    columns = [
        column for part in zip(*rows, strict=True) for column in dict.fromkeys(key for row in part for key in row)
    ]
    write_table(summary_table, columns, [{key: value for part in row for key, value in part.items()} for row in rows])


def read_entry(metrics: Path, timings: Path, recipe: Path, baseline: Path) -> Entry:
    """Files of one search; FormatError unless they are of one network, the same images and one recipe."""
    result, reference, seconds, chosen = (read_json(path) for path in (metrics, baseline, timings, recipe))
    if not reference["sha256"].items() <= result["sha256"].items():
        raise FormatError(f"{metrics}: of another model or other images than {baseline}; {remedy(baseline)}")
    check_sha256(recipe, result["sha256"]["recipe"], metrics)
    check_origin(timings, seconds["sha256"], {"packed": result["sha256"]["packed"]})
    return Entry(result, seconds["seconds"], chosen, reference, metrics.parent)


def advice(found: list[Entry]) -> str:
    """What to run next, given the results of a model's searches."""
    met = [(entry.result["bytes"]["packed"], entry.folder) for entry in found if entry.result["verdict"] == "met"]
    if met:
        return f"python -c \"import wshare; print(wshare.load_packed('{min(met)[1]}/packed.safetensors').keys())\""
    undecided = [entry for entry in found if entry.result["verdict"] == "undecided"]
    # The search that is nearest to its target.
    nearest = max(
        undecided or found, key=lambda entry: entry.result["relative_quality"] - entry.result["quality_target"]
    )
    result, search = nearest.result, f"searches.{nearest.result['search']}"
    if result["needed"]["balanced_images"]:
        images = "about as many images of each class" if result["counts"] else "images that differ more"
        return f"give datasets.{result['dataset']} {images}, and run again"
    rate = nearest.recipe["settings"]["options"].get("compression_rate")
    if rate is not None:
        # A search to a size goes neither by the target nor by the confidence.
        change = f"lower {search}.options.compression_rate (now {rate:g})"
    elif undecided:
        change = f"raise {search}.confidence"
    else:
        change = f"raise {search}.confidence, or lower {search}.quality_target"
    needed = result["needed"]["held_out_images"]
    more = f"{needed:,} images or more" if needed else "more images"
    images = f"give datasets.{result['dataset']}.split.held_out {more}, or " if undecided else ""
    return f"{images}{change}, and run again"


def row(entry: Entry) -> tuple[dict, dict, dict]:
    """One line of the table: what stands before quality, quality by the task's own figure, and the rest."""
    result = entry.result
    low, high = result["relative_quality_ci95"]
    quality = own_figures(task_of(result))[0].key
    return (
        {
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
        },
        {
            f"float32_{quality}": round(result["float32"][quality], 5),
            f"packed_{quality}": round(result["compressed"][quality], 5),
        },
        {
            "relative_quality": round(result["relative_quality"], 5),
            "ci95_low": round(low, 5),
            "ci95_high": round(high, 5),
            "kl": float(f"{result['compressed']['kl']:.4g}"),
            "evaluations": result["evaluations"],
            "gradient_epochs": result["gradient_epochs"],
            "images_forwarded": result["images_forwarded"],
            "search_seconds": round(entry.timings["search"], 1),
        },
    )


def heading(result: dict, baseline: dict) -> str:
    """The model's name and its quality before compression."""
    told = told_skipped(baseline)
    skipped = f"; unreadable images left out: {told}" if told else ""
    dense, figure = result["float32"], own_figures(task_of(result))[0]
    quality = "no labels" if is_agreement(result) else f"{figure.label} {figure.text(dense[figure.key])}"
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
            f"    {in_a_line(task_of(result), result)}",
            f"    quality target {result['quality_target']:.2%} {result['verdict'].upper()}; "
            f"{counted(result['evaluations'], 'evaluation')}, {result['images_forwarded']:,} images forwarded",
            *(f"    {reason}" for reason in reasons(result)),
            f"    files: {folder}/packed.safetensors, dense.safetensors, metrics.json, recipe.json",
        ]
    )
