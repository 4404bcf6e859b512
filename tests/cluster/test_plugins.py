"""Each profile is taken whole by Snakemake with the executor's plugin at hand, its keys included."""

from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["slurm", "slurm-gpu", "cluster-generic", "kubernetes"])
def test_keys_are_options_of_snakemake_and_its_plugins(name: str):
    content = yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text())
    assert content["executor"] in ExecutorPluginRegistry().get_registered_plugins()
    known = get_argument_parser()._option_string_actions
    assert [key for key in content if f"--{key}" not in known] == []
