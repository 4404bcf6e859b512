"""A wrong configuration stops a dry run at once, with every problem and no traceback."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from wshare.config.slices import studies
from wshare.config.validation import complete

from .conftest import CONFIG, ROOT, snakemake


def dry_run(folder: Path, edit) -> tuple[int, str]:
    """Exit code and output of a dry run with an edited configuration."""
    config = yaml.safe_load(CONFIG.read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = snakemake(folder, "--dry-run")
    return run.returncode, run.stdout + run.stderr


def test_all_problems_are_listed_at_once(tmp_path: Path):
    def edit(config):
        config["sede"] = 1
        config["models"]["tiny"]["datset"] = "digits"
        config["searches"]["slope"]["quality_target"] = 2
        config["searches"]["slope"]["options"] = {"samples": 3}
        config["clustering"]["method"] = "exat"

    code, output = dry_run(tmp_path, edit)
    assert code == 1
    assert "Traceback" not in output
    for line in (
        "sede: unknown key. Did you mean 'seed'?",
        "models.tiny.datset: unknown key. Did you mean 'dataset'?",
        "searches.slope.quality_target: 2 is greater than the maximum of 1",
        "searches.slope.options.samples: unknown key.",
        "clustering.method: 'exat' is not one of exact, lloyd, sklearn. Did you mean 'exact'?",
    ):
        assert line in output


def test_unknown_layer_is_named_with_the_closest(tmp_path: Path):
    shutil.copy(CONFIG, tmp_path)
    config = yaml.safe_load(CONFIG.read_text())
    config["models"]["tiny"]["layers"]["exclude"] = ["cnov"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = snakemake(tmp_path, "--cores", "1", "results/tiny/model/layers.json")
    output = run.stdout + run.stderr
    assert run.returncode != 0
    assert "models.tiny.layers.exclude.'cnov': no such layer. Did you mean 'conv'?" in output


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_lint_finds_nothing(tmp_path: Path, snakefile: str):
    shutil.copy(CONFIG, tmp_path)
    run = snakemake(tmp_path, "--lint", snakefile=snakefile)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Congratulations" in run.stdout + run.stderr


def test_a_model_runs_the_searches_it_names(tmp_path: Path):
    code, output = dry_run(tmp_path, lambda config: config["models"]["tiny"].update(searches=["uniform"]))
    assert code == 0, output
    assert "results/tiny/search/uniform/metrics.json" in output
    assert "results/tiny/search/slope" not in output


def test_the_default_study_can_be_planned(tmp_path: Path):
    shutil.copy(ROOT / "config" / "config.yaml", tmp_path)
    run = snakemake(tmp_path, "--dry-run", "--quiet", "rules")
    assert run.returncode == 0, run.stdout + run.stderr
    count = len(studies(complete(yaml.safe_load((tmp_path / "config.yaml").read_text()))))
    for rule in ("search", "pack_model", "evaluate_packed"):
        assert re.search(rf"^{rule} +{count}$", run.stdout + run.stderr, re.MULTILINE)


def test_shipped_studies_can_be_planned(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for name in ("imagenet", "efficientnet_lite0"):
        shutil.copy(ROOT / "config" / f"{name}.yaml", tmp_path / "config.yaml")
        run = snakemake(tmp_path, "--dry-run", "--config", f"image_folder={tmp_path / 'images'}")
        assert run.returncode == 0, run.stdout + run.stderr
        assert "fetch_model" in run.stdout + run.stderr
        assert "lenet5" not in run.stdout + run.stderr


def test_a_target_that_is_taken_for_a_configuration_is_told(tmp_path: Path):
    shutil.copy(CONFIG, tmp_path)
    target = tmp_path / "results" / "metrics.json"
    target.parent.mkdir()
    target.write_text('{"verdict": "met"}')
    run = snakemake(tmp_path, "--dry-run", "--configfile", str(tmp_path / "config.yaml"), str(target))
    assert run.returncode == 1
    assert (
        "results/metrics.json: read as a configuration; --configfile takes all that follows" in run.stdout + run.stderr
    )
