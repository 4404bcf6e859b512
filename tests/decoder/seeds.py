"""Seeds of the decoder's fuzzer: python -m tests.decoder.seeds <corpus folder>

The golden files, what the fuzzers of Python's reader kept, and files changed at random.
"""

import sys
from pathlib import Path

from ..fuzz.targets import seal, with_hash
from .changed import DATA, FIRST, SECOND, THIRD, WAYS, changed


def hostile() -> list[bytes]:
    """Packed files that the fuzzers of Python's reader kept, with hashes that fit."""
    kept = {target: [path.read_bytes() for path in sorted((DATA / "fuzz" / target).iterdir())] for target in TARGETS}
    return [TARGETS[target](content) for target, contents in kept.items() for content in contents]


def _sealed(content: bytes) -> bytes:
    size = int.from_bytes(content[:2], "little")
    return seal(content[2 : 2 + size], content[2 + size :])


TARGETS = {"packed": bytes, "sealed": _sealed, "hashed": with_hash}


def main() -> None:
    """Write all seeds."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [path.read_bytes() for path in (FIRST, *SECOND, *THIRD)] + hostile()
    seeds += [content for way in WAYS for content in changed(way, 20)]
    for number, content in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(content)


if __name__ == "__main__":
    main()
