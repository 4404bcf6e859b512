"""LICENSE, CITATION.cff, CHANGELOG.md, README.md, the manual and the shipped configurations hold what they promise."""

import ast
import hashlib
import importlib
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from wshare.artifacts.front import LAYER
from wshare.cli import COMMANDS, STAGES, main
from wshare.config.validation import complete
from wshare.errors import UserError
from wshare.models.sources.efficientnet_lite import VARIANTS
from wshare.search.front import front_columns
from wshare.search.method import Found
from wshare.search.run import LOSSES
from wshare.stages.arguments import Names
from wshare.tasks.classification import COLUMNS, FIGURES
from wshare.version import __version__

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
# The text as the Apache Software Foundation publishes it.
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def load(name):
    return yaml.safe_load(read(name))


def test_license_is_apache_2_0_word_for_word():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0
    assert tomllib.loads(read("pyproject.toml"))["project"]["license"] == "Apache-2.0"


def test_citation_names_this_version_and_its_license():
    citation = load("CITATION.cff")
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "version", "license", "references"}
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == "wshare"
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


def test_citation_refers_to_the_paper():
    (paper,) = load("CITATION.cff")["references"]
    assert paper.keys() >= {"type", "title", "authors", "conference", "year"}
    assert paper["type"] == "conference-paper"
    assert [author["family-names"] for author in paper["authors"]] == ["Dupuis", "Novo", "O'Connor", "Bosio"]
    assert "hal:lirmm-03767100" in [identifier["value"] for identifier in paper["identifiers"]]


def test_changelog_has_this_version():
    assert f"\n## [{__version__}] - " in read("CHANGELOG.md")


def test_workflow_catalogue_finds_what_it_asks_for():
    usage = load(".snakemake-workflow-catalog.yml")["usage"]
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    deployment = usage["software-stack-deployment"]
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    assert deployment == {
        "conda": "conda:" in rules,
        "apptainer": "container:" in rules,
        "apptainer+conda": "container:" in rules and "conda:" in rules,
    }
    assert usage["report"] == ("report(" in rules)
    assert all((ROOT / name).is_file() for name in ("workflow/Snakefile", "config/README.md", "config/config.yaml"))
    assert all(word in read("README.md").lower() for word in ("snakemake", "workflow"))


@pytest.mark.slow
def test_picture_of_the_front_shows_the_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    figures = importlib.import_module("figures")
    shipped = figures.PICTURE.read_bytes()
    assert len(shipped) < 100_000
    monkeypatch.setattr(figures, "PICTURE", tmp_path / "front.svg")
    figures.main()
    assert (tmp_path / "front.svg").read_bytes() == shipped, "renew it: python benchmarks/figures.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_is_valid_and_names_no_folder(path):
    config = load(path)
    assert [name for name, dataset in config["datasets"].items() if dataset.get("path")] == []
    complete(config | {"image_folder": "/folder/of/images"})


@pytest.mark.parametrize("name", ["imagenet", "efficientnet_lite0"])
def test_study_on_your_images_asks_for_the_folder(name):
    with pytest.raises(UserError, match="--config image_folder=<folder>"):
        complete(load(f"config/{name}.yaml"))


@pytest.mark.slow
def test_networks_of_the_imagenet_study_have_weights():
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    models = load("config/imagenet.yaml")["models"]
    assert len(models) == 7
    for model in models.values():
        if model["source"] == "timm":
            assert model["architecture"] in timm.list_pretrained()
        elif model["source"] == "efficientnet_lite":
            assert model["architecture"] in VARIANTS
        else:
            known = torchvision.models.get_model_weights(model["architecture"])
            assert model["weights"] in known.__members__


@pytest.mark.parametrize("stage", STAGES)
def test_manual_names_every_stage(stage):
    assert f"`{stage}`" in read("docs/configuration.md")


def test_page_of_results_defines_every_key_of_metrics():
    stage, verdict = (
        ast.parse(read(f"workflow/wshare/{name}.py")) for name in ("stages/evaluate_packed", "evaluation/verdict")
    )
    (hashes,) = [node.value for node in ast.walk(stage) if isinstance(node, ast.Assign) and name_of(node) == "hashes"]
    last = {node.name: node.body[-1] for node in verdict.body if isinstance(node, ast.FunctionDef)}
    described, compared = (keys_of(last[name].value) for name in ("describe", "compare"))
    keys = [*(field.name for field in fields(Names)), *described, *compared]
    keys += [f"sha256.{key}" for key in (*keys_of(hashes), "model", "held_out_images", "search_images")]
    keys += [f"{network}.images" for network in ("float32", "compressed")] + ["compressed.kl"]
    keys += [f"compressed.{figure.key}" for figure in FIGURES]
    keys += [f"float32.{figure.key}" for figure in FIGURES if not figure.compares]
    assert {"compression_rate.on_disk", "sha256.packed", "expected_relative_quality_ci95"} <= {*keys}
    section = read("docs/results.md").partition("## metrics.json")[2].partition("\n## ")[0]
    assert [key for key in keys if f"`{key}`" not in section and f"`{key}." not in section] == []


def test_page_of_results_defines_every_column_of_front_and_losses():
    page = read("docs/results.md")
    found = Found({}, ("chosen",), {("chosen",): {"slope": 1.0}}, frozenset())
    columns = [*front_columns(COLUMNS, found, ()), f"{LAYER}<layer>"]
    front, losses = (page.partition(f"## {name}")[2].partition("\n## ")[0] for name in ("front.csv", "losses.csv"))
    assert [column for column in columns if f"`{column}`" not in front] == []
    assert [column for column in LOSSES if f"`{column}`" not in losses] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_page_of_commands_has_every_flag_and_no_other(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    flags = set(re.findall(r"^  (?:-h, )?(--[a-z][a-z0-9-]*)(?:, (--[a-z-]*))?", capsys.readouterr().out, re.MULTILINE))
    section = read("docs/commands.md").partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    table = "\n".join(re.findall(r"^\| (`--.*?) \|", section, re.MULTILINE))
    assert set(re.findall(r"`(--[a-z-]+)`", table)) == {name for pair in flags for name in pair if name} - {"--help"}


def name_of(assignment):
    """Name that an assignment gives, if it gives a single one."""
    return getattr(assignment.targets[0], "id", None)


def keys_of(node):
    """Keys of a dict display, `outer.inner` where a value is one itself; what is unpacked into it is left out."""
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            continue
        if isinstance(value, ast.Dict):
            yield from (f"{key.value}.{inner}" for inner in keys_of(value))
        else:
            yield key.value
