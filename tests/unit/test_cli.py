import gc
import inspect
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from wshare.artifacts.clusters import read_clusters
from wshare.artifacts.weights import write_weights
from wshare.cli import COMMANDS, STAGES, main
from wshare.config.validation import PACKAGE
from wshare.files.sealed import write_json
from wshare.files.tables import write_sealed
from wshare.version import __version__

from ..rules import bodies

CLUSTERING = {
    "method": "exact",
    "k_max": 8,
    "bins": 64,
    "weighting": "none",
    "candidates": [2, 6, 100],
    "keep_zeros": False,
    "seed": 0,
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in THREADS:
        monkeypatch.setenv(name, "7")


def weight_file(folder: Path) -> Path:
    path = folder / "weights.h5"
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_weights(path, {"fc": weights}, {"fc": weights**2}, {"fc": 1.0}, {}, {})
    return path


def cluster(folder: Path, weights: Path, layer: str = "fc", settings: str = json.dumps(CLUSTERING)) -> list[str]:
    output = str(folder / "out" / "clusters.h5")
    files = ["--layer-weights", str(weights), "--clusters", output]
    return ["cluster_layer", "--settings", settings, "--layer", layer, *files]


def help_of(command: str, capsys: pytest.CaptureFixture) -> str:
    """What `--help` prints."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def flags_of(function: Callable) -> set[str]:
    """Names of a stage's flags; those of a parameter that is a dataclass are the names of its fields."""
    names = set()
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        names |= {field.name for field in fields(kind)} if is_dataclass(kind) else {name}
    return {name.replace("_", "-") for name in names}


@pytest.mark.parametrize("stage", STAGES)
def test_help_tells_what_a_stage_does_and_all_its_flags(stage, capsys):
    text = help_of(stage, capsys)
    function = getattr(import_module(f"wshare.stages.{stage}"), stage)
    first_words = " ".join(function.__doc__.split()[:3])
    assert first_words in " ".join(text.split())
    for name in flags_of(function):
        assert f"--{name} " in text


def test_the_program_lists_its_stages_and_its_version(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(stage in text for stage in STAGES)
    assert all(f"  {name}" in text and line in text for name, line in COMMANDS.items())
    assert text.index("compare") < text.index("stages, which the workflow's rules call:") < text.index("fetch_model")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"wshare {__version__}\n"


def test_every_stage_has_a_module_and_every_module_is_a_stage():
    assert {file.stem for file in (PACKAGE / "stages").glob("*.py")} == {*STAGES, "__init__", "arguments"}
    assert {file.stem for file in (PACKAGE / "commands").glob("*.py")} == {*COMMANDS, "__init__", "common", "tables"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_its_line_an_example_and_help_for_every_flag(command, capsys):
    text = help_of(command, capsys)
    function = getattr(import_module(f"wshare.commands.{command}"), command)
    assert inspect.getdoc(function).splitlines()[0] == COMMANDS[command]
    assert COMMANDS[command] in text
    assert f"Example:\n  wshare {command} " in text
    words = " ".join(text.split())
    for name, parameter in inspect.signature(function).parameters.items():
        told = get_args(parameter.annotation)[1]
        assert told in words, name
        assert (f"--{name.replace('_', '-')}" in words) == (parameter.kind is parameter.KEYWORD_ONLY)
        if type(parameter.default) in (int, float, str):
            assert f"{told} (default: {parameter.default})" in words, name


def test_rules_call_stages_with_the_flags_that_they_have_one_a_line():
    shells = {
        rule: re.findall(r'^        "(.*)"', body.partition("shell:")[2], re.M) for rule, body in bodies().items()
    }
    assert {rule for rule, lines in shells.items() if lines} == set(STAGES)
    for stage, (call, *lines, log) in shells.items():
        assert call == f"python -m wshare {stage}"
        assert log == " > {log:q} 2>&1"
        given = [re.fullmatch(r" --([\w-]+) \{[\w.]+(:q)?\}", line)[1] for line in lines]
        assert len(set(given)) == len(given)
        assert set(given) == flags_of(getattr(import_module(f"wshare.stages.{stage}"), stage)), stage


def test_a_flag_means_the_same_file_in_every_rule():
    """Of the files that several stages read, each has one flag; a list of them ends in an s."""
    meant = {}
    for body in bodies().values():
        files = dict(re.findall(r'^        (\w+)=(?:\w+\("\w+", )?"(results/[^"]+)"\)?,$', body, re.MULTILINE))
        for flag, name in re.findall(r'" --([\w-]+) \{(?:input|output)\.(\w+):q\}"', body):
            if name in files:
                meant.setdefault(flag, set()).add(files[name])
    assert {flag: files for flag, files in meant.items() if len(files) > 1} == {}


def test_a_stage_runs_from_its_flags(tmp_path):
    assert main(cluster(tmp_path, weight_file(tmp_path))) == 0
    clusters = read_clusters(tmp_path / "out" / "clusters.h5")
    assert clusters.layer == "fc"
    assert clusters.candidates == (2, 6, 8)
    assert len(clusters.sweep.inertia) == 8


def test_libraries_start_no_threads_of_their_own(tmp_path):
    main(cluster(tmp_path, weight_file(tmp_path)))
    assert {os.environ[name] for name in THREADS} == {"1"}


def damaged(folder: Path) -> Path:
    path = weight_file(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder: cluster(folder, folder / "absent.h5"), "absent.h5: no such file"),
        (lambda folder: cluster(folder, damaged(folder)), "weights.h5: damaged"),
        (lambda folder: cluster(folder, weight_file(folder), layer="conv"), "no layer 'conv'"),
        (
            lambda folder: ["gather_sensitivity", "--tables", f"{folder}/a", "--sensitivity", f"{folder}/b"],
            "a: no such file",
        ),
        (
            lambda folder: [
                "summarise",
                *("--metrics", f"{folder}/a", "--timings", f"{folder}/e", "--recipes", f"{folder}/f"),
                *("--baselines", f"{folder}/d", "--summary", f"{folder}/b", "--summary-table", f"{folder}/c"),
            ],
            "a: no such file",
        ),
    ],
)
def test_bad_input_ends_in_one_line_and_code_1(arguments, message, tmp_path, capsys):
    command = arguments(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert main(command) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"wshare {command[0]}: error: ")
    assert message in output.err
    assert {path for path in tmp_path.rglob("*") if path.is_file()} <= before


def test_tables_of_other_columns_are_not_gathered(tmp_path, capsys):
    tables = [tmp_path / name for name in "ab"]
    write_sealed(tables[0], ["layer", "k"], [{"layer": "conv", "k": 2}], {"model": "0"})
    write_sealed(tables[1], ["layer", "q"], [{"layer": "conv", "q": 2}], {"model": "0"})
    output = tmp_path / "c"
    assert main(["gather_sensitivity", "--tables", *map(str, tables), "--sensitivity", str(output)]) == 1
    assert f"{tables[1]}: other columns" in capsys.readouterr().err
    rows = [{"layer": "fc", "k": 3}, {"layer": "fc", "k": 4}]
    write_sealed(tables[1], ["layer", "k"], rows, {"model": "1"})
    assert main(["gather_sensitivity", "--tables", *map(str, tables), "--sensitivity", str(output)]) == 1
    assert f"{tables[1]}: made from other model" in capsys.readouterr().err
    write_sealed(tables[1], ["layer", "k"], rows, {"model": "0"})
    assert main(["gather_sensitivity", "--tables", *map(str, tables), "--sensitivity", str(output)]) == 0
    assert output.read_text().startswith("layer,k\nconv,2\nfc,3\nfc,4\n# ")


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["cluster_layer"], ["cluster_layer", "--settings", "{", "--layer", "x"]]
)
def test_a_wrong_call_ends_with_the_usage_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: wshare" in capsys.readouterr().err


def test_a_command_that_does_not_exist_is_one_short_line(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["wshare: error: nothing: no such command; `wshare --help` lists them"]


@pytest.mark.slow
def test_from_a_shell(tmp_path):
    """The exit code and the one line are those of the process too; a damaged model file is named."""
    write_json(tmp_path / "model.json", {"sha256": "0", "dropped": []})
    (tmp_path / "weights").write_bytes(b"not these")
    command = ["inspect_model", "--settings", "{}", "--model", "m", "--spec", "model.json", "--weights", "weights"]
    run = subprocess.run(
        [sys.executable, "-m", "wshare", *command, "--layers", "layers.json"],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("wshare inspect_model: error: weights: not the file that model.json describes")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "layers.json").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_documented_and_takes_what_a_flag_can_give(stage):
    function = getattr(import_module(f"wshare.stages.{stage}"), stage)
    assert inspect.getdoc(function)
    parameters = inspect.signature(function).parameters.values()
    assert len(parameters) <= 10
    kinds = [parameter.annotation for parameter in parameters]
    for kind in kinds:
        kinds += [field.type for field in fields(kind)] if is_dataclass(kind) else []
        assert kind in (dict, Path, list[Path], str, int, Path | None) or is_dataclass(kind), kind
    assert all(parameter.default is parameter.empty for parameter in parameters)


@dataclass(frozen=True)
class Some:
    """Files, two of which may be left out."""

    first: Path
    second: Path | None = None
    others: list[Path] = field(default_factory=list)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--first", "a"], Some(Path("a"))),
        (["--first", "a", "--second", "--others"], Some(Path("a"))),
        (["--second", "b", "--others", "c", "d", "--first", "a"], Some(Path("a"), Path("b"), [Path("c"), Path("d")])),
    ],
)
def test_fields_of_an_argument_are_flags_and_those_with_a_default_may_stand_without_a_value(
    monkeypatch, given, expected
):
    seen = []

    def gather_sensitivity(count: int, files: Some) -> None:
        seen.append((count, files))

    monkeypatch.setattr(import_module("wshare.stages.gather_sensitivity"), "gather_sensitivity", gather_sensitivity)
    assert main(["gather_sensitivity", "--count", "3", *given]) == 0
    assert seen == [(3, expected)]


@pytest.mark.parametrize(("tables", "code"), [("0.csv", 0), ("missing.csv", 1)])
def test_a_stage_ends_with_its_code_and_what_others_do_at_the_end(tables, code, tmp_path):
    write_sealed(tmp_path / "0.csv", ("layer", "k"), [{"layer": "fc", "k": 2}], {})
    arguments = ["gather_sensitivity", "--tables", tables, "--sensitivity", "out.csv"]
    program = f"""if True:
        import atexit, runpy, sys
        # No line: it waits to be flushed.
        atexit.register(lambda: print("at the end", end=""))
        sys.argv[1:] = {arguments}
        runpy.run_module("wshare", run_name="__main__")
    """
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert run.stdout.splitlines()[-1] == "at the end"
    assert (tmp_path / "out.csv").exists() == (code == 0)


def test_garbage_is_collected_but_for_imports(monkeypatch):
    seen = {}

    def gather_sensitivity():
        """Stands for a stage."""
        seen["stage"] = gc.isenabled()

    def imported(name: str) -> SimpleNamespace:
        seen["import"] = gc.isenabled()
        return SimpleNamespace(gather_sensitivity=gather_sensitivity)

    monkeypatch.setattr("wshare.cli.importlib", SimpleNamespace(import_module=imported))
    assert main(["gather_sensitivity"]) == 0
    assert seen == {"import": False, "stage": True}


def test_what_the_library_logs_is_printed_as_it_is(monkeypatch, capsys):
    def gather_sensitivity() -> None:
        logging.getLogger("wshare.anything").info("50 %% of %s", "all")
        logging.getLogger("elsewhere").info("of no interest")

    monkeypatch.setattr(import_module("wshare.stages.gather_sensitivity"), "gather_sensitivity", gather_sensitivity)
    assert main(["gather_sensitivity"]) == 0
    assert capsys.readouterr() == ("50 % of all\n", "")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_gpu_that_is_full_gives_one_line_and_other_errors_show_where_they_are(tmp_path, monkeypatch, capsys, error):
    def gather_sensitivity(tables: list[Path], sensitivity: Path) -> None:
        raise error("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less.")

    monkeypatch.setattr(import_module("wshare.stages.gather_sensitivity"), "gather_sensitivity", gather_sensitivity)
    arguments = ["gather_sensitivity", "--tables", str(tmp_path / "0.csv"), "--sensitivity", str(tmp_path / "out.csv")]
    if error is RuntimeError:
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            main(arguments)
        return
    assert main(arguments) == 1
    assert capsys.readouterr().err == (
        "wshare gather_sensitivity: error: CUDA out of memory; run it with a profile that gives it no gpu\n"
    )
