"""The page of a study: all models and searches side by side."""

from html import escape

from wshare.report import charts
from wshare.report.charts import Chart
from wshare.report.model import VERDICTS
from wshare.report.page import figure, page, table
from wshare.report.quality import written
from wshare.report.texts import counted, percent, size
from wshare.tasks.table import task_of
from wshare.tasks.task import own_figures

# In metrics.json.
NETWORKS = ("float32", "compressed")


def study_page(results: list[dict]) -> tuple[str, Chart]:
    """HTML page that compares `results`, the metrics of all searches, and its chart."""
    chart = charts.comparison(results)
    quality = " or ".join(dict.fromkeys(own_figures(task_of(result))[0].label for result in results))
    columns = [
        ("model", ""),
        ("search", ""),
        ("rate on disk", "number"),
        ("verdict", ""),
        ("share of float32", "number"),
        ("interval from", "number"),
        ("to", "number"),
        ("quality target", "number"),
        ("packed file", "number"),
        ("float32 file", "number"),
        ("measure", ""),
        (f"float32 {quality}", "number"),
        (f"packed {quality}", "number"),
        ("KL, nats", "number"),
        ("bits a weight", "number"),
        ("rate, analytic", "number"),
        ("held-out images", "number"),
        ("evaluations", "number"),
    ]
    body = (
        f"<h2>All results</h2>{figure('results', chart)}"
        "<p>On disk compares two real files with everything counted; analytic counts indices and codebooks alone. "
        "Where the measure is agreement, the images have no labels, and the float32 network agrees with itself by "
        "definition. A model's name leads to its own page.</p>"
        + table("results", columns, [_row(result) for result in results], "All models and searches")
        + '<p><button type="button" data-csv="results" data-name="results.csv">Download as CSV</button></p>'
    )
    models = len({result["model"] for result in results})
    met = sum(result["verdict"] == "met" for result in results)
    lead = (
        f"{counted(models, 'model')}, {counted(len(results), 'packed file')}; confirmed at the quality target: {met}."
    )
    footer = f"Made by wshare {escape(results[0]['versions']['wshare'])}."
    return page(
        "Study: all models", "All models and searches", lead, body, footer, {"metrics": results}, {"results": chart}
    ), chart


def _row(result: dict) -> list[tuple[str, object]]:
    nbytes, rate = result["bytes"], result["compression_rate"]
    low, high = result["relative_quality_ci95"]
    model, verdict = result["model"], result["verdict"]
    quality = own_figures(task_of(result))[0]

    def share(value: float) -> tuple[str, object]:
        return percent(value, result["quality_target"]), value

    return [
        (f'<a href="../{escape(model)}/report/index.html">{escape(model)}</a>', model),
        (escape(result["search"]), result["search"]),
        (f"<strong>{rate['on_disk']:.2f}x</strong>", rate["on_disk"]),
        (f'<span class="verdict {verdict}">{VERDICTS[verdict]}</span>', verdict),
        share(result["relative_quality"]),
        share(low),
        share(high),
        share(result["quality_target"]),
        (size(nbytes["packed"]), nbytes["packed"]),
        (size(nbytes["float32"]), nbytes["float32"]),
        (escape(result["measure"]), result["measure"]),
        *((written(quality, value), value) for value in (result[network][quality.key] for network in NETWORKS)),
        (f"{result['compressed']['kl']:.4g}", result["compressed"]["kl"]),
        (f"{result['bits_per_weight']:.2f}", result["bits_per_weight"]),
        (f"{rate['analytic']:.2f}x", rate["analytic"]),
        (f"{result['compressed']['images']:,}", result["compressed"]["images"]),
        (str(result["evaluations"]), result["evaluations"]),
    ]
