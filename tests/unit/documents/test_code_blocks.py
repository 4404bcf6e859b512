"""Every code block of the documents is run, or checked as far as it can be without a run of minutes.

- `python`: run, the blocks of a page one after another. They find what `prepared` makes.
- `sh`: each command line is checked by the program's own options, and every file and target that it names.
- `c`: compiled with the header of an export, and run; that of docs/decoder.md by tests/decoder.
- `js`: run by tests/browser.
- `yaml`: a configuration is completed as a run would; a part of one is laid over a whole one.
- `text`: formulas, layouts and output, no code.

docs/extending.md is carried out as a whole by test_extending.py.
"""

import contextlib
import io
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from snakemake.cli import get_argument_parser
from snakemake.utils import update_config

from wshare import cli
from wshare.config.validation import complete, schema
from wshare.exports.table import FORMATS
from wshare.models.state import state_of
from wshare.models.zoo import build
from wshare.packed.format import load_packed, write_packed
from wshare.quantize.codebooks import Shared, nearest_indices

from ..exports.test_c import COMPILER, FLAGS

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path
    for folder in (".", "config", "docs", "profiles")
    for path in (ROOT / folder).glob("*.md")
    if path.name not in ("CHANGELOG.md", "extending.md")
)
PACKED = "results/mine/search/small/packed.safetensors"
# Programs whose command lines cannot be checked here, and why; `bash -n` reads them all the same.
NOT_CHECKED = {
    "source": "a shell's own business",
    "pip": "would change the environment, or ask a package index",
    "bsub": "LSF is installed nowhere here",
    "case": "asks LSF",
    "state=$(qstat": "asks PBS",
    "*job_state": "asks PBS",
    "if": "asks SGE",
    "elif": "asks SGE",
    "cc": "the tests of the decoder compile what it names",
    "arm-none-eabi-gcc": "the same, where it is installed",
    "arm-none-eabi-size": "the benchmark of the decoder runs it",
    "./unpack": "the tests of the decoder run it",
    "npm": "would ask a package registry; `make test-browser` runs this line",
}
# Files that the reader has or a run leaves, as the pages name them.
READERS = re.compile(r"results/|site/|data/|my\.yaml$|.*<.*>")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE):
        yield Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def in_language(language):
    return [block for block in BLOCKS if block.language == language]


def command_lines(block):
    """Commands of a shell block, as words; comments and line breaks behind a backslash are gone."""
    for line in block.text.replace("\\\n", " ").splitlines():
        # A name in angle brackets is for the reader to fill in, no redirection.
        if words := shlex.split(line, comments=True):
            yield words


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A working directory with the packed file of a run, and what a page's code calls its own: a small network
    `model`, and `images` float32 [64, 1, 28, 28] with `labels`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build("lenet5", {}).eval()
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    values = np.linspace(-0.4, 0.4, 16, dtype=np.float32)
    shared = {name: Shared(values, nearest_indices(state[name], values)) for name in state if name.endswith("weight")}
    write_packed(tmp_path / PACKED, state, shared, {}, {}, {}, "entropy")
    images = torch.randn(64, 1, 28, 28)
    return {"model": model, "images": images, "labels": model(images).argmax(1)}


def laid_over_a_whole_one(given, page):
    """A part of a configuration over the first example of its page, or else of README.md; a whole one as it is."""
    whole = {"datasets", "models", "searches"}
    if given.keys() >= whole:
        return given
    examples = [yaml.safe_load(block.text) for block in in_language("yaml") if block.page in (page, ROOT / "README.md")]
    base = next(example for example in reversed(examples) if example.keys() >= whole)
    for name, model in given.get("models", {}).items():
        # A source makes it another network.
        if "source" in model:
            base["models"].pop(name, None)
    update_config(base, given)
    return base


def test_every_block_names_its_language():
    unknown = [str(block) for block in BLOCKS if block.language not in ("python", "sh", "yaml", "c", "js", "text")]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_is_made_by_indentation(page):
    outside = re.sub(r"^```(?:.*\n)*?```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert re.findall(r"\n\n( {4}\S.*)", outside) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in in_language("python")}), ids=lambda page: page.name)
def test_python_blocks_run(page, prepared):
    for block in in_language("python"):
        if block.page == page:
            # The empty lines make a traceback name the line of the page.
            exec(compile("\n" * block.line + block.text, page, "exec"), prepared)


# Holds the binary that a page says to lie in flash, calls what the page defines, and prints what that expanded.
C_PROGRAM = """
%s
const uint8_t network[] = {%s};
#include <stdio.h>
int main(void) {
    if (expand_fc1() != WSHARE_OK) return 1;
    return fwrite(weights, 4, NETWORK_LARGEST, stdout) != NETWORK_LARGEST;
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler (gcc, cc or clang) is on the path")
@pytest.mark.parametrize("block", [block for block in in_language("c") if block.page.name != "decoder.md"], ids=str)
def test_c_blocks_compile_and_expand_the_weights(block, prepared, tmp_path):
    FORMATS["c"].write(Path(PACKED), tmp_path / "network.bin")
    octets = ", ".join(map(str, (tmp_path / "network.bin").read_bytes()))
    (tmp_path / "block.c").write_text(C_PROGRAM % (block.text, octets))
    subprocess.run([COMPILER, *FLAGS, "block.c", "-o", "block"], check=True)
    found = subprocess.run([tmp_path / "block"], stdout=subprocess.PIPE, check=True).stdout
    expected = load_packed(PACKED)["fc1.weight"].numpy().tobytes()
    assert found[: len(expected)] == expected


@pytest.mark.parametrize("block", in_language("yaml"), ids=str)
def test_yaml_blocks_are_configurations_or_profiles(block):
    given = yaml.safe_load(block.text)
    if given.keys() <= schema()["properties"].keys():
        complete(laid_over_a_whole_one(given, block.page))
    else:
        # Executors that are not installed bring options of their own; tests/cluster runs those of the submit command.
        generic = {f"cluster-generic-{name}-cmd" for name in ("submit", "status", "cancel")}
        options = get_argument_parser()._option_string_actions
        assert given.keys() <= generic | {name.removeprefix("--") for name in options}


@pytest.mark.parametrize("block", in_language("sh"), ids=str)
def test_shell_blocks_name_commands_options_and_files_that_exist(block):
    subprocess.run(["bash", "-n"], input=re.sub(r"<(\w[\w -]*)>", r"\1", block.text), text=True, check=True)
    for words in command_lines(block):
        if words[0].split(" ")[0] not in NOT_CHECKED:
            check_command(words)


def test_the_list_of_unchecked_commands_is_no_longer_than_needed():
    written = {words[0].split(" ")[0] for block in in_language("sh") for words in command_lines(block)}
    assert NOT_CHECKED.keys() <= written


def check_command(words):
    # What only starts the command behind it.
    while re.fullmatch(r"[A-Z_]+=.*|srun", words[0]):
        words = words[1:]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "python" and arguments[0] == "-m":
        program, arguments = f"python -m {arguments[1]}", arguments[2:]
    CHECKS[program](arguments)


def test_the_package_of_the_page_is_the_one_that_is_tested():
    """In the same words but for the version, which the Makefile names once."""
    (line,) = [" ".join(words) for block in in_language("sh") for words in command_lines(block) if words[0] == "npm"]
    makefile = (ROOT / "Makefile").read_text()
    name, _, version = line.rpartition("@")
    assert f"{name}@$(ONNXRUNTIME_WEB)\n" in makefile.replace("--silent ", "")
    assert f"ONNXRUNTIME_WEB := {version}\n" in makefile


def check_make(arguments):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(arguments) <= set(targets)


def check_snakemake(arguments):
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.suppress(SystemExit):
        given = get_argument_parser(profiles=[]).parse_args(arguments)
    assert not errors.getvalue()
    check_files([*(given.configfile or []), *given.targets])
    if given.workflow_profile:
        assert list((ROOT / given.workflow_profile).glob("*.yaml"))
    rules = "".join(path.read_text() for path in (ROOT / "workflow").rglob("*.smk"))
    assert [
        name for name in given.forcerun or [] if f"\nrule {name}:" not in rules and f"\ncheckpoint {name}:" not in rules
    ] == []


def check_wshare(arguments):
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text), pytest.raises(SystemExit) as end:
        cli.main([*arguments[:1], "--help"])
    assert end.value.code == 0
    flags = [word.split("=")[0] for word in arguments[1:] if word.startswith("--")]
    known = set(re.findall(r"--[a-z][a-z0-9-]*", help_text.getvalue()))
    assert [flag for flag in flags if flag not in known] == []


def check_script(arguments):
    script, *rest = arguments
    source = (ROOT / script).read_text()
    assert [word for word in rest if word.startswith("--") and f'"{word}"' not in source] == []


def check_files(arguments):
    """Every word that is no option is a file or a folder of the project, or the reader's."""
    named = [word for word in map(str, arguments) if not word.startswith("-") and not READERS.match(word)]
    assert [word for word in named if not (ROOT / word).exists()] == []


CHECKS = {
    "make": check_make,
    "snakemake": check_snakemake,
    "wshare": check_wshare,
    "python -m wshare": check_wshare,
    "python -m http.server": check_files,
    "python -m wshare.config.manual": check_files,
    "python": check_script,
    "pytest": check_files,
    "cat": check_files,
}
