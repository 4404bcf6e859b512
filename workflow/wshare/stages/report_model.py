"""The report of one model: an HTML page and its charts as figures."""

import shutil
import subprocess
from pathlib import Path

from tqdm import tqdm

from wshare.files.atomic import write_text
from wshare.progress import PROGRESS
from wshare.report.charts import write_figures
from wshare.report.model import model_page
from wshare.report.results import ModelReportFiles, read_model_results


def report_model(settings: dict, model: str, files: ModelReportFiles, page: Path, figures: Path) -> None:
    """Write the page, and below `figures` an SVG and a PNG of each chart in a folder for each search.

    `settings` is the configuration that gives the results again.
    """
    html, charts = model_page(read_model_results(model, files), settings, program())
    with tqdm(charts.items(), desc="figures", **PROGRESS) as bar:
        for name, chart in bar:
            write_figures(chart, figures / name)
    write_text(page, html)


def program() -> str:
    """The program's commit, if it runs from a git checkout."""
    folder = str(Path(__file__).parent)

    def git(*arguments: str) -> str | None:
        run = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if shutil.which("git") else None
    if commit is None:
        return "not a git checkout"
    return f"git commit {commit}{', with changes' if git('status', '--porcelain', '--', '.') else ''}"
