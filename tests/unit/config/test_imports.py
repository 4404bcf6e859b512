"""What is imported while the Snakefile is parsed, and by stages that need no network."""

import os
import re
import subprocess
import sys

import pytest

from wshare.config.validation import PACKAGE


@pytest.mark.slow
def test_light_stages_and_the_settings_import_no_torch():
    names = ["wshare.stages.cluster_layer", "wshare.stages.gather_sensitivity", "wshare.stages.summarise"]
    names += ["wshare.stages.report_model", "wshare.stages.report_study", "wshare.stages.prepare_images"]
    names += ["wshare.config.slices", "wshare.config.validation", "wshare.cli", "wshare.config.environment"]
    program = f"import {', '.join(names)}, sys; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


STAGES = ("evaluate_dense", "extract_weights", "profile_layers", "search", "pack_model", "evaluate_packed")
BY_K = [f"wshare.search.by_k.{method}" for method in ("slope", "two_step", "uniform")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "libraries"),
    [
        (
            [*(f"wshare.stages.{stage}" for stage in STAGES), "wshare.tasks.classification", *BY_K],
            {"scipy.stats", "scipy.optimize", "sklearn", "pymoo", "numba"},
        ),
        (["wshare.search.rate_distortion.search"], {"scipy.stats", "sklearn", "pymoo"}),
    ],
    ids=["stages", "rate_distortion"],
)
def test_stages_and_methods_import_no_library_that_few_of_their_functions_use(names, libraries):
    """Each takes as long as the work of a small job; functions that need one import it."""
    program = f"import {', '.join(names)}, sys; print(sorted({libraries} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_what_rules_import_and_the_tables_load_no_library_of_arrays():
    names = ["wshare.config.slices", "wshare.config.validation", "wshare.config.code_hash", "wshare.config.environment"]
    program = f"""if True:
        import {", ".join(names)}, importlib, sys
        # What the code hash reads rows from.
        for table in wshare.config.code_hash.TABLES:
            importlib.import_module(table.module)
        print(sorted({{"torch", "numpy", "h5py"}} & set(sys.modules)))
    """
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_rules_import_no_torch():
    for file in [*PACKAGE.parent.rglob("*.smk"), PACKAGE.parent / "Snakefile"]:
        assert not re.search(r"^\s*(import|from) (torch|numpy|h5py)", file.read_text(encoding="utf-8"), re.MULTILINE)
