"""Which source files a stage runs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wshare.cli import STAGES
from wshare.config import code_hash
from wshare.config.code_hash import code_files
from wshare.config.validation import PACKAGE


def modules(stage: str, **chosen: str) -> set[str]:
    """Modules of the package that a stage runs; packages, which hold a docstring, are left out."""
    files = [Path(file).relative_to(PACKAGE).with_suffix("") for file in code_files(stage, **chosen)]
    return {".".join(file.parts) for file in files if file.name != "__init__"}


def test_code_files_of_a_light_stage_are_exactly_these():
    assert modules("gather_sensitivity") == {
        "stages.gather_sensitivity",
        "errors",
        "files.atomic",
        "files.sealed",
        "files.tables",
    }


def test_code_files_of_fetch_model_hold_the_modules_of_its_source_alone():
    sources = {"models.sources." + name for name in ("torchvision", "timm", "efficientnet_lite", "python", "file")}
    for source, own in (
        ("torchvision", {"torchvision"}),
        ("timm", {"timm"}),
        ("efficientnet_lite", {"efficientnet_lite"}),
        ("file", {"file", "torchvision", "timm", "python"}),
        ("python", {"python"}),
    ):
        found = modules("fetch_model", source=source)
        assert found & sources == {f"models.sources.{name}" for name in own}
        # EfficientNet-Lite is made of its parts.
        assert ("models.zoo" in found) == (source == "efficientnet_lite")
    assert sources <= modules("fetch_model")
    assert modules("inspect_model", source="train") & (sources | {"models.zoo"}) == {"models.zoo"}


def test_code_files_of_the_images_hold_the_module_of_their_source_alone():
    sources = {"data.datasets." + name for name in ("arrays", "cifar10", "folders", "photos", "python")}
    assert modules("prepare_images", dataset="imagenet") & sources == {"data.datasets.folders"}
    assert sources <= modules("prepare_images")
    # Stages behind it read decoded images.
    assert not sources & modules("extract_weights")


def test_code_files_of_search_hold_the_method_alone():
    pytest.importorskip("wshare.search.methods")
    found = modules("search", method="slope")
    assert {"search.by_k.slope", "search.by_k.problem", "stages.search"} <= found
    assert not {"search.by_k.two_step", "search.by_k.uniform", "quantize.error_feedback"} & found
    # The program of milp starts from the path of greedy.
    assert {"search.by_k.milp", "search.by_k.greedy"} <= modules("search", method="milp")
    found = modules("search", method="rate_distortion")
    assert {"quantize.error_feedback", "quantize.kmeans"} <= found
    assert not {"search.by_k.slope"} & found


def test_import_statements_are_found_as_a_syntax_tree_has_them():
    for file in Path(PACKAGE).rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        tree = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        names = {(node.module, alias.name) for node in tree for alias in node.names if node.module.startswith("wshare")}
        assert set(code_hash.imported(source)) == names, file


def test_a_name_that_is_in_no_table_is_refused():
    with pytest.raises(ValueError, match=r"'tim' is not in wshare\.models\.sources\.table"):
        code_files("fetch_model", source="tim")


def test_code_files_of_a_model_hold_no_evaluation():
    assert not {"evaluation.predict", "data.images"} & (modules("fetch_model") | modules("inspect_model"))


def test_code_hash_follows_names_and_contents_alone(monkeypatch, tmp_path):
    files = [tmp_path / name for name in ("a.py", "b.py")]
    hashes = set()
    for contents in (("x", "y"), ("xy", ""), ("x", "y"), ("y", "x")):
        for file, content in zip(files, contents, strict=True):
            file.write_text(content)
        monkeypatch.setattr(code_hash, "PACKAGE", tmp_path)
        monkeypatch.setattr(code_hash, "code_files", lambda *_, **__: tuple(map(str, files)))
        code_hash.code_hash.cache_clear()
        hashes.add(code_hash.code_hash("search"))
    code_hash.code_hash.cache_clear()
    assert len(hashes) == 3


@pytest.mark.slow
def test_code_files_hold_every_module_that_a_stage_imports():
    """Imports that a running Python sees, against those read from the source; only doors for users may be missing."""
    program = """if True:
        import json, os, sys
        import h5py, numba, numpy, scipy.stats, torch, torchvision, tqdm
        seen = {}
        for stage in json.loads(sys.argv[1]):
            read, write = os.pipe()
            if os.fork() == 0:
                __import__(f"wshare.stages.{stage}")
                files = [module.__file__ for name, module in sys.modules.items() if name.startswith("wshare.")]
                os.write(write, json.dumps(files).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                seen[stage] = json.loads(pipe.read())
            os.wait()
        print(json.dumps(seen))
    """
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    arguments = [sys.executable, "-c", program, json.dumps(STAGES)]
    run = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
    for stage, files in json.loads(run.stdout).items():
        assert {file for file in files if file != str(PACKAGE / "stages" / "__init__.py")} <= set(code_files(stage)), (
            stage
        )
