"""The plan of the ImageNet study: so many jobs and no more."""

import shutil

import pytest
import torch
import yaml

from wshare.config.validation import complete
from wshare.files.sealed import write_json
from wshare.models.layers import Choice, inspect
from wshare.models.registry import build

from ..networks import CONFIG, random_weights
from .conftest import ROOT, snakemake

STUDY = ROOT / "config" / "imagenet.yaml"
# Rules with a job for each network, and with a job for each search of a network.
ONCE = (
    *("prepare_images", "evaluate_dense", "extract_weights", "measure_inputs", "gather_sensitivity"),
    "report_model",
)
OF_SEARCHES = ("search", "pack_model", "evaluate_packed")
# The jobs in front of the layers, whose results stand there already.
BEFORE = ("fetch_model", "inspect_model")


def layers_of(model: dict) -> dict:
    """Content of layers.json of a published network, from its architecture alone."""
    kind = model["source"]
    arguments = {"size": 224} if kind == "efficientnet_lite" else {}
    if model["architecture"] in ("googlenet", "inception_v3"):
        arguments["aux_logits"] = False
    with torch.device("meta"):
        module = build(
            {"builder": {"kind": kind, "name": model["architecture"], "arguments": arguments}, "dropped": []}
        )
    return inspect(module, [], Choice())


def jobs_of(output: str) -> dict[str, int]:
    """Planned jobs of each rule, from the table of a dry run."""
    rows = [line.split() for line in output.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], dict[str, int]]:
    """Layers of each network, and planned jobs of each rule."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "images").mkdir()
    shutil.copy(STUDY, folder / "config.yaml")
    layers = {}
    for name, model in yaml.safe_load(STUDY.read_text())["models"].items():
        results = folder / "results" / name / "model"
        results.mkdir(parents=True)
        (results / "weights.safetensors").write_bytes(b"")
        write_json(results / "model.json", {})
        table = layers_of(model)
        write_json(results / "layers.json", table)
        layers[name] = len(table["layers"])
    run = snakemake(folder, "--dry-run", "--quiet", "rules", "--config", f"image_folder={folder / 'images'}")
    assert run.returncode == 0, run.stdout + run.stderr
    return layers, jobs_of(run.stdout + run.stderr)


def test_networks_have_their_layers(plan):
    assert plan[0] == {
        "googlenet": 58,
        "resnetv2_50": 54,
        "mobilenet_v2": 53,
        "inception_v3": 95,
        "efficientnet_b0": 82,
        "resnet50": 54,
        "efficientnet_lite0": 50,
    }


def test_jobs_follow_from_networks_layers_and_searches(plan):
    layers, jobs = plan
    config = complete(yaml.safe_load(STUDY.read_text()) | {"image_folder": "/"})
    a_job = config["sensitivity"]["layers_per_job"]
    expected = dict.fromkeys(ONCE, len(layers)) | dict.fromkeys(OF_SEARCHES, len(layers) * len(config["searches"]))
    expected["cluster_layer"] = sum(layers.values())
    expected["profile_layers"] = sum(-(-count // a_job) for count in layers.values())
    assert {rule: jobs.get(rule) for rule in expected} == expected
    # The reports and the target itself: jobs that no network multiplies.
    assert jobs["total"] - sum(expected.values()) <= 10


def test_whole_study_is_under_800_jobs(plan):
    layers, jobs = plan
    assert not set(BEFORE) & set(jobs)
    assert jobs["total"] + len(BEFORE) * len(layers) < 800


def test_networks_for_timings_are_those_of_the_study():
    study, timed = (list(yaml.safe_load(path.read_text())["models"]) for path in (STUDY, CONFIG))
    assert timed == study


def test_random_weights_are_repeatable_and_give_finite_outputs_that_differ():
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, again = (random_weights("shufflenet_v2_x0_5")(images) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    assert first.std(0).mean() > 0.01
