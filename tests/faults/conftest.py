"""Faults that a run has to survive, and the table of docs/reliability.md that is made from their tests.

A test asks for the fixture `fault`, opens a row and counts what it tried:

    def test_killed_job(fault):
        row = fault(2, "kill -9 of a job", where="cluster_layer", data="absent or whole; the next run makes it anew")
        for delay in delays:
            ...
            row.round(survived)          # one round; or row.tried(n) for n rounds that went well

`number` is the fault's place in the table and groups its rows; rows of one number and name are added up, so that a
parametrised test fills one row. A round that did not survive has to fail its test too: the row only counts. After

    pytest tests/faults -n 2 --reliability docs/reliability.md

the table stands between the marks `<!-- faults: begin -->` and `<!-- faults: end -->` of that page.
"""

import re
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch

from ..runs import command, files, made_once, run_to_end
from . import pipeline, supervisor

CONFIG = Path(__file__).with_name("config.yaml")
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


@dataclass
class Row:
    """One line of the table."""

    number: int
    name: str
    data: str
    where: list[str] = field(default_factory=list)
    rounds: int = 0
    survived: int = 0
    notes: list[str] = field(default_factory=list)

    def round(self, survived: bool, note: str = "") -> None:
        """Count one round; a note stands in the table, once however often it is given."""
        self.rounds += 1
        self.survived += survived
        if note and note not in self.notes:
            self.notes.append(note)

    def tried(self, rounds: int) -> None:
        """Count rounds that all went well."""
        self.rounds += rounds
        self.survived += rounds

    def add(self, other: "Row") -> None:
        """Count the rounds of the same fault that were tried elsewhere."""
        self.rounds += other.rounds
        self.survived += other.survived
        self.where += [place for place in other.where if place not in self.where]
        self.notes += [note for note in other.notes if note not in self.notes]

    def cells(self) -> tuple[str, ...]:
        """Number, fault, where, rounds, survived, data."""
        text = ". ".join([self.data, *self.notes])
        return str(self.number), self.name, ", ".join(self.where), str(self.rounds), str(self.survived), text


ROWS = pytest.StashKey[dict[tuple[int, str], Row]]()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Stages that run in this process have as many threads as jobs have: sums of floats depend on them."""
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="PAGE", help="renew the table of faults in this page")


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[..., Row]:
    """Opens the row of a fault, or goes on with it: fault(number, name, data="...", where="...")."""
    rows = request.config.stash.setdefault(ROWS, {})

    def open_row(number: int, name: str, *, data: str, where: str = "") -> Row:
        row = rows.setdefault((number, name), Row(number, name, data))
        if where and where not in row.where:
            row.where.append(where)
        return row

    return open_row


def pytest_sessionfinish(session: pytest.Session) -> None:
    page, rows = session.config.getoption("reliability", None), session.config.stash.get(ROWS, {})
    if hasattr(session.config, "workeroutput"):
        # One of pytest-xdist's processes: the first one writes the page.
        session.config.workeroutput["faults"] = [asdict(row) for row in rows.values()]
    elif page:
        text = page.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        page.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", "utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Add up the rows of a process of pytest-xdist that has ended."""
    rows = node.config.stash.setdefault(ROWS, {})
    for found in getattr(node, "workeroutput", {}).get("faults", []):
        row = rows.setdefault((found["number"], found["name"]), Row(found["number"], found["name"], found["data"]))
        row.add(Row(**found))


def table(rows: dict[tuple[int, str], Row]) -> str:
    """The rows that were tried, by number and name."""
    lines = ["| # | fault | where | rounds | survived | what happened to the data |", "|---|---|---|---|---|---|"]
    for _, row in sorted(rows.items()):
        if row.rounds:
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in row.cells()) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Study:
    """A finished run that nothing disturbed: its folder, the arguments of each job's stage, its files."""

    folder: Path
    jobs: dict[str, list[str]]
    files: dict[str, bytes]

    def copy(self) -> Path:
        """The same run in another folder."""
        target = Path(tempfile.mkdtemp(prefix="copy", dir=self.folder.parent))
        return shutil.copytree(self.folder, target, dirs_exist_ok=True)

    def outputs(self, job: str) -> set[str]:
        """Files under results/ that a job writes and no other."""
        arguments = self.jobs[job]
        written = [value for flag, value in pairwise(arguments) if flag in OUTPUTS[arguments[0]]]
        return {str(Path(path).relative_to("results")) for path in written}

    def clear(self, folder: Path, job: str) -> None:
        """Remove from a copy what a job has written."""
        for name in self.outputs(job):
            path = folder / "results" / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


# Flags of each stage that name what it writes.
OUTPUTS = {
    "train_model": ("--weights", "--spec"),
    "fetch_model": ("--weights", "--spec"),
    "prepare_images": ("--search-images", "--held-out-images"),
    "inspect_model": ("--layers",),
    "evaluate_dense": ("--search-outputs", "--held-out-outputs", "--baseline"),
    "extract_weights": ("--layer-weights",),
    "cluster_layer": ("--clusters",),
    "profile_layers": ("--table",),
    "gather_sensitivity": ("--sensitivity",),
    "measure_inputs": ("--calibration",),
    "search": ("--journal", "--front", "--losses", "--recipe"),
    "pack_model": ("--packed", "--dense", "--sizes"),
    "evaluate_packed": ("--metrics", "--predictions", "--timings"),
    "summarise": ("--summary", "--summary-table"),
    "report_model": ("--page", "--figures"),
    "report_study": ("--page", "--figures"),
}
# A report takes as long as all other stages: few rounds.
REPORTS = {"report_model": 1, "report_study": 3}


def snakemake(folder: Path, *arguments: str, alone: bool = False) -> subprocess.CompletedProcess:
    """Run Snakemake on the study in a folder, to its end."""
    return run_to_end(command(folder, *arguments), alone=alone)


def stage_of(run: subprocess.Popen) -> int:
    """Process of the stage that a run works on: the one of its session that runs wshare."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name, in brackets, may hold anything; session and process are numbers.
            session = int(status.read_text().rpartition(")")[2].split()[3])
            called = (status.parent / "cmdline").read_bytes().split(b"\0")
            if session == run.pid and called[1:3] == [b"-m", b"wshare"]:
                return int(status.parent.name)
    raise AssertionError("no stage is at work")


def finished(printed: str) -> Counter[str]:
    """How many jobs of each rule came to their end, by what Snakemake printed."""
    return Counter(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", printed, flags=re.MULTILINE))


def check_same(folder: Path, study: Study) -> None:
    """Assert that the results are those of the undisturbed run, with no file missing and none left over."""
    found = files(folder)
    assert found.keys() == study.files.keys()
    assert [name for name in found if found[name] != study.files[name]] == []
    assert leftovers(folder) == []


def check_whole(folder: Path, study: Study, job: str) -> None:
    """Assert that each output of a job is absent or right, and that no other file has changed."""
    outputs, found = study.outputs(job), files(folder)
    assert study.files.keys() - found.keys() <= outputs
    # A journal grows line by line.
    whole = [name for name in found if not name.endswith("journal.jsonl")]
    assert [name for name in whole if found[name] != study.files.get(name)] == []


def before_report(study: Study, job: str) -> tuple[Path, dict[str, bytes]]:
    """A copy of the run from before it wrote a report, and the files of that report in the end."""
    folder = study.copy()
    study.clear(folder, job)
    # The page of a model shows the times of all jobs before it.
    (folder / "results/tiny/benchmarks/report_model.tsv").unlink()
    return folder, report_files(study.folder, study, job)


def report_files(folder: Path, study: Study, job: str) -> dict[str, bytes]:
    """Content of the files of a report that are there, by path; without Snakemake's stamp and unfinished ones."""
    paths = [folder / "results" / name for name in study.outputs(job)]
    paths = [found.relative_to(folder) for path in paths for found in (path, *path.rglob("*")) if found.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if not any(part[0] == "." for part in path.parts)}


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders among the results."""
    return [path for path in (folder / "results").rglob("*") if ".tmp" in path.name]


def jobs_of(output: str) -> dict[str, list[str]]:
    """Arguments of each job's stage, from what Snakemake printed about a run."""
    jobs = {}
    for line in re.findall(r"python -m wshare (.*) > \S+ 2>&1", output, flags=re.MULTILINE):
        arguments = shlex.split(line)
        name = arguments[0]
        if name == "cluster_layer":
            name += " " + arguments[arguments.index("--layer") + 1]
        elif name in ("search", "pack_model", "evaluate_packed"):
            name += " " + Path(arguments[arguments.index("--recipe") + 1]).parent.name
        jobs[name] = arguments
    return jobs


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The undisturbed run, on 4 cores."""
    folder = made_once(tmp_path_factory, "undisturbed", run_study)
    return Study(folder, jobs_of((folder / "terminal.txt").read_text()), files(folder))


def run_study(folder: Path) -> None:
    shutil.copy(CONFIG, folder)
    run = snakemake(folder, "--cores", "4", "--printshellcmds")
    assert run.returncode == 0, run.stdout + run.stderr
    (folder / "terminal.txt").write_text(run.stdout + run.stderr)


@pytest.fixture(scope="session")
def every_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of every stage of `pipeline`, reports included."""
    return made_once(tmp_path_factory, "every_stage", run_stages)


def run_stages(folder: Path) -> None:
    # Figures take most of a report's time; they are drawn from what its page holds.
    with chdir(folder), mock.patch("wshare.stages.report_model.write_figures"):
        pipeline.run_all()
        for search in ("slope", "rd"):
            assert pipeline.run("report_model", search) == 0


@pytest.fixture
def results(every_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them as working directory."""
    shutil.copytree(every_stage / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    # What Snakemake was called with: the command in a message is a default one.
    monkeypatch.delenv("WSHARE_COMMAND", raising=False)
    return tmp_path


def watched(study: Study, job: str, run_stage: Callable[..., supervisor.Ended]) -> tuple[Path, list[tuple[str, str]]]:
    """A copy of the run, and the calls that a job made while it wrote its files there anew."""
    folder = study.copy()
    study.clear(folder, job)
    return folder, run_stage(folder, study.jobs[job]).calls


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., supervisor.Ended]:
    """`supervisor.stage`, with its fork server."""
    supervisor.start()
    return supervisor.stage
