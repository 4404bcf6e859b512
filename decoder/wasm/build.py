"""Compiles wshare.h for WebAssembly into wshare.js: python decoder/wasm/build.py; needs clang and lld.

python decoder/wasm/build.py <file>     writes the module there instead
"""

import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "wshare.js"
SOURCES = (HERE / "string.h", HERE / "wshare.c", HERE.parent / "wshare.h")
FLAGS = ["-std=c99", "-Os", "-mbulk-memory", "-ffreestanding", "-Wall", "-Wextra", "-pedantic", "-Werror"]
LINK = ["-nostdlib", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--export=__heap_base"]
BLOCK = re.compile(r"^/\* of sources[^`]*?\*/\nconst WASM = `\n[^`]*`;\n", flags=re.MULTILINE)


def built(output: Path, *more: str) -> bytes:
    """The module, which is also written to `output`; `more` are further options of the compiler."""
    command = ["clang", "--target=wasm32", *FLAGS, *LINK, *more, f"-I{HERE}", f"-I{HERE.parent}", HERE / "wshare.c"]
    subprocess.run([*command, "-o", output], check=True)
    return output.read_bytes()


def compiler() -> str:
    """Name and version of the compiler."""
    line = subprocess.run(["clang", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return re.search(r"clang version [\d.]+", line)[0]


def sources() -> str:
    """SHA-256 of all that the module is made from but the compiler."""
    digest = hashlib.sha256(" ".join((*FLAGS, *LINK)).encode())
    for path in SOURCES:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def with_module(script: str, module: bytes) -> str:
    """The text of wshare.js with this module in it."""
    text = "\n".join(textwrap.wrap(base64.b64encode(module).decode(), 116))
    block = f"/* of sources {sources()}\n   by {compiler()} */\nconst WASM = `\n{text}\n`;\n"
    replaced, count = BLOCK.subn(lambda _: block, script)
    if count != 1:
        sys.exit(f"{SCRIPT}: the place of the module is not found")
    return replaced


def main() -> None:
    """Write the module into wshare.js, or to a file."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "wshare.wasm"
        module = built(output)
    if len(sys.argv) == 1:
        SCRIPT.write_text(with_module(SCRIPT.read_text(encoding="utf-8"), module), encoding="utf-8")


if __name__ == "__main__":
    main()
