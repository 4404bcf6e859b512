"""Jobs of small networks take one thread, and none takes all cores where a run has several models."""

import inspect
import re
from pathlib import Path

import pytest
import yaml
from snakemake.scheduling.job_scheduler import JobScheduler

from ..runs import command, run_to_end
from .conftest import CONFIG

LARGE, SMALL = 5_000_000, 100_000


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of a large and a small network, of which the weights are there and nothing else."""
    config = yaml.safe_load(CONFIG.read_text())
    config["searches"] = {"uniform": config["searches"]["uniform"]}
    config["models"] = {"large": config["models"]["tiny"], "small": config["models"]["tiny"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for model, size in (("large", LARGE), ("small", SMALL)):
        weights = tmp_path / "results" / model / "model" / "weights.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(bytes(size))
    return tmp_path


def threads(folder: Path, *arguments: str) -> dict[str, int]:
    """Threads of the searches that a plan lists, by model; Snakemake names no single one."""
    planned = run_to_end(command(folder, "--dry-run", *arguments))
    assert planned.returncode == 0, planned.stdout + planned.stderr
    jobs = re.findall(r"^rule search:\n((?: {4}.*\n)+)", planned.stdout, re.MULTILINE)
    found = {}
    for job in jobs:
        asked = re.search(r"^    threads: (\d+)$", job, re.MULTILINE)
        found[re.search("model=(\\w+)", job)[1]] = int(asked[1]) if asked else 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "large"), [(1, 1), (2, 1), (4, 2), (16, 4)])
def test_several_models_share_the_cores(study, cores, large):
    assert threads(study, "--cores", str(cores)) == {"large": large, "small": 1}


@pytest.mark.slow
def test_one_model_takes_what_there_is(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    del config["models"]["small"]
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    assert threads(study, "--cores", "2") == {"large": 2}
    assert threads(study, "--cores", "16") == {"large": 4}


def test_without_a_limit_of_jobs_a_second_snakemake_does_not_look_again_and_again():
    """What `start_jobs_without_delay` in the rules is for: a limit lets each look call for another one."""
    source = inspect.getsource(JobScheduler)
    assert re.search(r"if self\.job_rate_limiter is not None:\n(\s+#.*\n)*\s+self\._schedule_reevalutation\(", source)
    assert "if self.job_rate_limiter is None:" in source
