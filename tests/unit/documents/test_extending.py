"""The steps of docs/extending.md, carried out on a copy of the package, give a package that works."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from ...runs import PASSING, ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, flags=re.MULTILINE)
# A paragraph's last sentence, and the block that it announces.
STEP = re.compile(
    r"(Create|In|Try it)(?:\s+`([^`]+)`)?(?:,\s+(after|before|in place of)\s+`([^`]+)`)?:\n\n```\w+\n(.*?)```",
    re.DOTALL,
)


@pytest.mark.slow
@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_steps_of_the_section_work(tmp_path, title, text):
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow", symlinks=True, ignore=PASSING)
    steps = STEP.findall(text)
    assert len(steps) == text.count("```") / 2, "a block is announced in other words than the others"
    assert [verb for verb, *_ in steps].count("Try it") == 1
    for verb, path, where, anchor, code in steps:
        if verb == "Try it":
            environment = os.environ | {"PYTHONPATH": str(tmp_path / "workflow")}
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        elif verb == "Create":
            assert not (ROOT / path).exists()
            (tmp_path / path).write_text(code)
        else:
            change(tmp_path / path, where, anchor, code)


def change(path, where, anchor, code):
    """Put code after, before or in place of the one line that reads `anchor`."""
    lines = path.read_text().splitlines(keepends=True)
    (place,) = [place for place, line in enumerate(lines) if line.strip() == anchor]
    first, last = {"after": (1, 1), "before": (0, 0), "in place of": (0, 1)}[where]
    path.write_text("".join([*lines[: place + first], code, *lines[place + last :]]))
