"""The journal of a search."""

import json
import re
from pathlib import Path

import pytest

from wshare.files.journal import Journal

HEADER = {"settings": {"seed": 0}, "inputs": ["a", "b"]}
ENTRIES = {(2, None, 16): {"top1": 0.1, "low": 0.3}, (4, 4, 4): {"top1": 1 / 3, "low": -0.0}}


def filled(path: Path) -> str:
    with Journal(path, HEADER) as journal:
        for combination, measurement in ENTRIES.items():
            journal.append(combination, measurement)
            # On disk at once: a kill after this line loses nothing.
            assert json.loads(path.read_text().splitlines()[-1])[:2] == [list(combination), measurement]
    return path.read_text()


def test_a_journal_gives_back_what_was_measured(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = filled(path)
    with Journal(path, HEADER) as journal:
        assert {key: journal[key] for key in ENTRIES} == ENTRIES
        assert len(journal) == 2
        assert (2, None, 16) in journal
        assert (2, 2, 16) not in journal
        assert journal[4, 4, 4]["top1"] == 1 / 3
    assert path.read_text() == text


def test_a_journal_cut_off_anywhere_keeps_its_whole_lines(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = filled(path)
    ends = [match.end() for match in re.finditer("\n", text)]
    for length in {0, len(text), *range(3, len(text), 7), *(end + near for end in ends for near in (-1, 0, 1))}:
        path.write_text(text[:length])
        with Journal(path, HEADER) as journal:
            whole = sum(end <= length for end in ends)
            kept = max(0, whole - 1)
            assert [key in journal for key in ENTRIES] == [place < kept for place in range(len(ENTRIES))]
            assert len(journal) == kept
            journal.append((1, 1, 1), {"top1": 0.5})
        with Journal(path, HEADER) as journal:
            assert (1, 1, 1) in journal


@pytest.mark.parametrize("other", [HEADER | {"inputs": ["a", "c"]}, HEADER | {"settings": {"seed": 1}}, {}])
def test_a_journal_of_other_settings_or_inputs_is_started_anew(tmp_path, other):
    path = tmp_path / "journal.jsonl"
    filled(path)
    with Journal(path, other) as journal:
        assert len(journal) == 0
    with Journal(path, HEADER) as journal:
        assert len(journal) == 0


def test_the_order_of_a_header_does_not_matter(tmp_path):
    path = tmp_path / "journal.jsonl"
    filled(path)
    with Journal(path, dict(reversed(HEADER.items()))) as journal:
        assert len(journal) == 2
