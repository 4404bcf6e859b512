"""The report of a study: one HTML page that compares all models and searches."""

from pathlib import Path

from wshare.files.atomic import write_text
from wshare.files.sealed import read_json
from wshare.report.charts import write_figures
from wshare.report.study import study_page


def report_study(metrics: list[Path], page: Path, figures: Path) -> None:
    """Write the page, and its chart as SVG and PNG below `figures`."""
    html, chart = study_page([read_json(path) for path in metrics])
    write_figures(chart, figures / "results")
    write_text(page, html)
