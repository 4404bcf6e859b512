"""Profiles name every rule, agree on what jobs ask for, and hold no key that Snakemake does not know."""

import re
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

ROOT = Path(__file__).parents[3]
PROFILES = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/profile.yaml"))
RULES = {
    name
    for path in (ROOT / "workflow/rules").glob("*.smk")
    for name in re.findall(r"^(?:rule|checkpoint) (\w+):", path.read_text(), flags=re.MULTILINE)
}
# What a job asks for on top of the default profile's, where there are GPUs.
GPU = {"gpu": {"gpu"}, "slurm-gpu": {"gpu", "slurm_partition"}}
# Rules whose jobs can use one.
FORWARDING = {
    name
    for path in (ROOT / "workflow/rules").glob("*.smk")
    for name, body in re.findall(
        r"^rule (\w+):(.*?)(?=^rule |^checkpoint |\Z)", path.read_text(), re.MULTILINE | re.DOTALL
    )
    if "--gpus" in body
}


def profile(name: str) -> dict:
    return yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text())


def unknown_keys(content: dict) -> list[str]:
    """Keys of a profile that are neither options of Snakemake nor of the profile's executor."""
    known = set(get_argument_parser()._option_string_actions)
    own = f"{content.get('executor')}-"
    return [key for key in content if f"--{key}" not in known and not key.startswith(own)]


@pytest.mark.parametrize("name", PROFILES)
def test_every_rule_asks_for_memory_and_time_that_grow(name: str):
    resources = profile(name)["set-resources"]
    assert set(resources) == RULES
    for rule, asked in resources.items():
        for resource in ("mem_mb", "runtime"):
            assert re.fullmatch(r"\d+ \* attempt", asked[resource]), f"{rule}: {asked}"


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_agree_on_what_jobs_ask_for(name: str):
    content, default = profile(name), profile("default")
    assert content["set-threads"] == default["set-threads"]
    assert set(content["set-threads"]) <= RULES
    asked = content["set-resources"]
    if name in GPU:
        given = {rule for rule, entry in asked.items() if set(entry) >= GPU[name]}
        assert given == FORWARDING
        assert {asked[rule]["gpu"] for rule in given} == {1}
        asked = {rule: {key: entry[key] for key in set(entry) - GPU[name]} for rule, entry in asked.items()}
    assert asked == default["set-resources"]


@pytest.mark.parametrize("name", PROFILES)
def test_keys_are_options_of_snakemake(name: str):
    assert unknown_keys(profile(name)) == []


def test_unknown_key_is_found():
    content = {"executor": "slurm", "slurm-array-jobs": "search", "retires": 2, "kubernetes-namespace": "default"}
    assert unknown_keys(content) == ["retires", "kubernetes-namespace"]


def test_manual_of_profiles_names_each_with_its_memory():
    text = (ROOT / "profiles/README.md").read_text()
    assert [name for name in PROFILES if f"## {name}\n" not in text] == []
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", text, flags=re.MULTILINE))
    asked = {rule: int(entry["mem_mb"].split()[0]) for rule, entry in profile("default")["set-resources"].items()}
    assert {rule: int(figure.replace(",", "")) for rule, figure in rows.items()} == asked


@pytest.mark.parametrize("name", ["slurm-gpu", "kubernetes"])
def test_profile_that_was_not_run_says_so(name: str):
    assert "\n# NOT RUN BY US" in (ROOT / "profiles" / name / "profile.yaml").read_text()
    section = (ROOT / "profiles/README.md").read_text().partition(f"## {name}\n")[2].partition("\n## ")[0]
    assert "Not run by us" in section
