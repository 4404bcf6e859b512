"""decoder/wshare.js in a browser gives Python's bits, and refuses the files that Python refuses."""

import base64
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.decoder.build import FORMS, TYPES, Tensor
from tests.decoder.changed import WAYS, changed
from tests.decoder.seeds import hostile
from tests.decoder.test_decoder import GOLDEN, assert_forms, assert_same, forged, random_parts
from tests.decoder.test_javascript import SCRIPT, wasm
from tests.faults.test_hostile_files import HOSTILE
from wshare.exports.table import FORMATS
from wshare.packed.format import load_packed, pack

NUMPY = dict(
    zip(
        (
            *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
            *("uint8", "uint16", "uint32", "uint64", "bool"),
        ),
        TYPES,
        strict=True,
    )
)
PAGE = Path(__file__).parents[2] / "docs" / "decoder.md"
# What the module gives for files in base64: of each its tensors, with bytes or the name of an error by form.
DECODE = """async ([files, forms]) => {
  const { open, PackedError } = await import(new URL("/wshare.js", location));
  const octets = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const text = array => {
    let letters = "";
    for (const octet of new Uint8Array(array.buffer)) letters += String.fromCharCode(octet);
    return btoa(letters);
  };
  const tried = work => {
    try {
      return work();
    } catch (error) {
      if (!(error instanceof PackedError) || !error.message.includes(": ")) throw error;
      return { error: error.code };
    }
  };
  const decode = async file => {
    const packed = await open(octets(file)).catch(error => tried(() => { throw error; }));
    if (packed.error) return packed;
    const data = tried(() => text(packed.data()));
    if (data.error) return data;
    return { data, tensors: packed.tensors.map(tensor => ({
      ...tensor, forms: forms.map(form => tried(() => text(packed.decode(tensor.name, form)))) })) };
  };
  const found = [];
  for (const file of files) found.push(await decode(file));
  return found;
}"""


@pytest.fixture
def decode(browser, served, tmp_path):
    """Gives what the module says of files: tensors, or the name of an error; and their data files."""
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "index.html").write_text("<!doctype html><title>decoder</title>")
    page = browser.new_page()

    def decoded(contents: list[bytes]) -> tuple[list[list[Tensor] | str], list[bytes | None]]:
        page.goto(served)
        files = [base64.b64encode(content).decode() for content in contents]
        found = page.evaluate(DECODE, [files, FORMS])
        return [tensors(answer) for answer in found], [octets(answer.get("data")) for answer in found]

    yield decoded
    page.close()


def octets(text: str | dict | None) -> bytes | str | None:
    if isinstance(text, dict):
        return text["error"]
    return None if text is None else base64.b64decode(text)


def tensors(answer: dict) -> list[Tensor] | str:
    if "error" in answer:
        return answer["error"]
    places = {tensor["name"]: place for place, tensor in enumerate(answer["tensors"])}
    return [
        Tensor(
            tensor["name"],
            np.frombuffer(octets(tensor["forms"][0]), NUMPY[tensor["type"]]).reshape(tensor["shape"]),
            tensor["k"],
            places[tensor["sameAs"]],
            dict(zip(FORMS, map(octets, tensor["forms"]), strict=True)),
        )
        for tensor in answer["tensors"]
    ]


def data_file(content: bytes, folder: Path) -> bytes:
    (folder / "packed").write_bytes(content)
    FORMATS["onnx-data"].write(folder / "packed", folder / "data")
    return (folder / "data").read_bytes()


def contents() -> list[bytes]:
    """Golden files of all versions and forms, and random networks."""
    random = [pack(*random_parts(seed), form)[0] for seed, form in itertools.product(range(3), ("fixed", "entropy"))]
    # What begins a name may also mark the order of bytes.
    marked, _ = pack({"\ufeffw": np.zeros(2, "f4")}, {}, {}, {}, {}, "fixed")
    return [*(path.read_bytes() for path in GOLDEN), marked, *random]


def check_bits(decode, folder: Path) -> None:
    files = contents()
    for content, found, data in zip(files, *decode(files), strict=True):
        assert_same(found, content)
        assert_forms(found, content)
        assert data == data_file(content, folder)
    places = {tensor.name: place for place, tensor in enumerate(found)}
    assert {found[places[name]].same_as for name in ("tied", "other")} == {places["layer0.weight"]}


def test_files_decode_to_the_bit(decode, tmp_path):
    check_bits(decode, tmp_path)


def test_the_module_compiled_here_gives_the_same_bits(decode, tmp_path):
    module = wasm.built(tmp_path / "wshare.wasm")
    (tmp_path / "wshare.js").write_text(wasm.with_module(SCRIPT.read_text(), module))
    check_bits(decode, tmp_path)


def test_products_of_128_bits_are_right(browser, tmp_path):
    """The compiler calls for them to find those that overflow, which no file of this size has."""
    module = wasm.built(tmp_path / "wshare.wasm", "-Wl,--export=__multi3")
    ends = [0, 1, 0xFFFFFFFF, 1 << 32, (1 << 33) + 5, (1 << 64) - 1, (1 << 64) + 7, (1 << 128) - 1]
    pairs = [(first, second) for first in ends for second in ends]
    halves = [[str(number >> shift & (1 << 64) - 1) for number in pair for shift in (0, 64)] for pair in pairs]
    page = browser.new_page()
    found = page.evaluate(
        """async ([module, pairs]) => {
          const octets = Uint8Array.from(atob(module), letter => letter.charCodeAt(0));
          const { exports } = (await WebAssembly.instantiate(octets)).instance;
          return pairs.map(halves => {
            exports.__multi3(0, ...halves.map(BigInt));
            return Array.from(new BigUint64Array(exports.memory.buffer, 0, 2), String);
          });
        }""",
        [base64.b64encode(module).decode(), halves],
    )
    page.close()
    assert [int(low) | int(high) << 64 for low, high in found] == [a * b & (1 << 128) - 1 for a, b in pairs]


def test_the_example_of_the_page_runs(visit, served, tmp_path):
    (example,) = re.findall(r"^```js\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    shutil.copy(SCRIPT, tmp_path)
    shutil.copy(GOLDEN[-1], tmp_path / "packed.safetensors")
    (tmp_path / "index.html").write_text(f"<link rel=icon href='data:,'><script type=module>{example}</script>")
    visit.page.goto(served, wait_until="networkidle")
    tensors = load_packed(GOLDEN[-1])
    lines = [line.removeprefix("log: ") for line in visit.said]
    assert [line.split(" ")[0] for line in lines] == [name.split(" ")[0] for name in tensors]
    assert [int(line.split(" ")[-1]) for line in lines] == [tensor.numel() for tensor in tensors.values()]


@pytest.mark.parametrize("way", WAYS)
def test_changed_files_have_pythons_verdict(decode, way):
    files = list(changed(way, 150, 1))
    found, _ = decode(files)
    assert 0 < sum(isinstance(verdict, str) for verdict in found) < len(found)
    for verdict, content in zip(found, files, strict=True):
        assert_same(verdict, content)


def test_hostile_and_forged_files_have_pythons_verdict(decode, tmp_path):
    files = hostile() + [content for make in HOSTILE.values() if len(content := make()) < 1 << 20]
    files += [*forged(tmp_path / "forged"), b"", b"x" * 100]
    found, _ = decode(files)
    for verdict, content in zip(found, files, strict=True):
        assert_same(verdict, content)
