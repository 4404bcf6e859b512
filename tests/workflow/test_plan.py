"""A dry run says which verdicts to expect, and refuses images that can confirm nothing, before any work is done."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ..runs import ROOT, run_to_end

pytestmark = pytest.mark.slow


def dry_run(folder: Path, confidence: float | None, held_out: int) -> subprocess.CompletedProcess:
    config = {
        "datasets": {"digits": {"source": "digits", "split": {"train": 500, "search": 500, "held_out": held_out}}},
        "models": {"tiny": {"source": "train", "architecture": "tiny", "dataset": "digits"}},
        "searches": {"slope": {"method": "slope", "confidence": confidence}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "study.yaml"]
    return run_to_end([*command, "--dry-run", "--cores", "1"], folder)


def test_a_target_that_is_never_met_is_told(tmp_path):
    done = dry_run(tmp_path, None, 300)
    assert done.returncode == 0
    told = 'tiny: quality target 0.99 on 300 held-out images is never "met": that takes 368 at least'
    assert (done.stdout + done.stderr).count(told) == 1


def test_a_confidence_that_no_image_confirms_is_refused(tmp_path):
    done = dry_run(tmp_path, 0.9, 300)
    assert done.returncode != 0
    told = "searches.slope: datasets.digits: 500 search images and 300 held-out ones cannot confirm"
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()
