"""Faults that a run has to survive, and the table of docs/reliability.md that is made from their tests.

A test asks for the fixture `fault`, opens a row and counts what it tried:

    def test_killed_job(fault):
        row = fault(2, "kill -9 of a job", where="cluster_layer", data="absent or whole; the next run makes it anew")
        for delay in delays:
            ...
            row.round(survived)          # one round; or row.tried(n) for n rounds that went well

`number` is the fault's place in the table and groups its rows; rows of one number and name are added up, so that a
parametrised test fills one row. A round that did not survive has to fail its test too: the row only counts. After

    pytest tests/faults --reliability docs/reliability.md

the table stands between the marks `<!-- faults: begin -->` and `<!-- faults: end -->` of that page.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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

    def cells(self) -> tuple[str, ...]:
        """Number, fault, where, rounds, survived, data."""
        text = ". ".join([self.data, *self.notes])
        return str(self.number), self.name, ", ".join(self.where), str(self.rounds), str(self.survived), text


ROWS = pytest.StashKey[dict[tuple[int, str], Row]]()


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
    page = session.config.getoption("reliability", None)
    if page:
        text = page.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        page.write_text(
            f"{head}{BEGIN}\n{table(session.config.stash.get(ROWS, {}))}\n{END}{rest.partition(END)[2]}", "utf-8"
        )


def table(rows: dict[tuple[int, str], Row]) -> str:
    """The rows that were tried, by number and name."""
    lines = ["| # | fault | where | rounds | survived | what happened to the data |", "|---|---|---|---|---|---|"]
    for _, row in sorted(rows.items()):
        if row.rounds:
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in row.cells()) + " |")
    return "\n".join(lines)
