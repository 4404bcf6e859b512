"""decoder/wshare.js holds the decoder as it is compiled from the sources beside it."""

import importlib.util
import shutil

import pytest

from .build import ERRORS, FOLDER, FORMS

SCRIPT = FOLDER / "wshare.js"
spec = importlib.util.spec_from_file_location("wasm", FOLDER / "wasm" / "build.py")
wasm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wasm)


def test_it_was_made_from_these_sources():
    assert wasm.sources() in SCRIPT.read_text(), "make decoder-js"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("clang") and shutil.which("wasm-ld")), reason="clang or lld is not on the path")
def test_the_same_compiler_makes_the_same_module(tmp_path):
    script = SCRIPT.read_text()
    if wasm.compiler() not in script:
        pytest.skip("another version of clang; the test in the browser runs what it makes")
    assert wasm.with_module(script, wasm.built(tmp_path / "wshare.wasm")) == script


def test_codes_and_forms_are_those_of_the_header():
    header, script = (FOLDER / "wshare.h").read_text(), SCRIPT.read_text()
    (codes,) = [
        part for part in script.split(";\n") if part.lstrip().startswith("const CODES") or "const CODES" in part
    ]
    quoted = codes[codes.index("const CODES") :].split('"')[1::2]
    assert quoted == ERRORS
    assert [f"WSHARE_{code}" for code in quoted if f"WSHARE_{code}" not in header] == []
    (forms,) = [part for part in script.split(";\n") if "const FORMS" in part]
    assert tuple(forms[forms.index("const FORMS") :].split('"')[1::2]) == FORMS
