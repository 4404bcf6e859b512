"""Rules tell what their jobs ask for; profiles hold what differs, and no key that Snakemake does not know."""

import re
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

ROOT = Path(__file__).parents[3]
PROFILES = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/profile.yaml"))
RULES = {
    name: body
    for path in (ROOT / "workflow/rules").glob("*.smk")
    for name, body in re.findall(
        r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), flags=re.MULTILINE | re.DOTALL
    )
}
# What a job asks for on top, where there are GPUs.
GPU = {"gpu": {"gpu": 1}, "slurm-gpu": {"gpu": 1, "slurm_partition": "gpu"}}
# Rules whose jobs can use one.
FORWARDING = {name for name, body in RULES.items() if "--gpus" in body}


def profile(name: str) -> dict:
    return yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text())


def unknown_keys(content: dict) -> list[str]:
    """Keys of a profile that are neither options of Snakemake nor of the profile's executor."""
    known = set(get_argument_parser()._option_string_actions)
    own = f"{content.get('executor')}-"
    return [key for key in content if f"--{key}" not in known and not key.startswith(own)]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_asks_for_memory_and_time_that_grow(rule: str):
    asked = re.findall(r"^        (mem_mb|runtime)=growing\(\d+\),$", RULES[rule], flags=re.MULTILINE)
    assert asked == ["mem_mb", "runtime"]


@pytest.mark.parametrize("rule", RULES)
def test_rules_with_threads_take_several_by_default_and_hand_them_on(rule: str):
    assert bool(re.search(r"^    threads: threads_up_to\([2-9]\)$", RULES[rule], re.MULTILINE)) == (
        '" --threads {threads}"' in RULES[rule]
    )


def test_what_searches_wait_for_and_searches_go_before_what_comes_after():
    priorities = {name: int(*re.findall(r"^    priority: (\d)$", body, re.MULTILINE)) for name, body in RULES.items()}
    after = {"pack_model", "evaluate_packed", "summarise", "report_model", "report_study"}
    # Of these nothing is known until they have run: what is to do, and how long it takes.
    first = {"fetch_model", "inspect_model"}
    assert priorities == {rule: 0 if rule in after else 2 if rule in first else 1 for rule in RULES}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_ask_for_gpus_alone(name: str):
    content = profile(name)
    assert "set-threads" not in content
    assert content.get("set-resources", {}) == (dict.fromkeys(FORWARDING, GPU[name]) if name in GPU else {})


def test_no_setting_stands_in_the_default_profile_and_in_another():
    default = profile("default").keys()
    assert [name for name in PROFILES if name != "default" and default & profile(name).keys()] == []


def test_no_line_of_settings_stands_in_all_profiles():
    lines = [
        {line for line in (ROOT / "profiles" / name / "profile.yaml").read_text().splitlines() if line[:1] not in "#"}
        for name in PROFILES
    ]
    assert set.intersection(*lines) == set()


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
    asked = {rule: int(re.search(r"mem_mb=growing\((\d+)\)", body)[1]) for rule, body in RULES.items()}
    assert {rule: int(figure.replace(",", "")) for rule, figure in rows.items()} == asked


@pytest.mark.parametrize("name", ["slurm-gpu", "kubernetes"])
def test_profile_that_was_not_run_says_so(name: str):
    assert "\n# NOT RUN BY US" in (ROOT / "profiles" / name / "profile.yaml").read_text()
    section = (ROOT / "profiles/README.md").read_text().partition(f"## {name}\n")[2].partition("\n## ")[0]
    assert "Not run by us" in section
