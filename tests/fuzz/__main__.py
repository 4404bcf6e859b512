"""Coverage-guided fuzzing of the readers: `make fuzz`, or with a Python that has atheris

    python -m tests.fuzz packed|sealed|hashed|model <corpus folder> [options of libFuzzer, such as -max_total_time=300]

The corpus folder is filled with seeds first. An input that ends in another error than ours, takes more than 5 s or
allocates more than 500 MB at once is written to a file crash-*, and the program stops.
"""

import sys
from pathlib import Path

import atheris

# Before the others: numba compiles no code that atheris has changed.
import wshare.packed.adaptive  # noqa: F401

with atheris.instrument_imports(
    include=[
        "wshare.packed.format",
        "wshare.packed.container",
        "wshare.packed.sections",
        "wshare.packed.bitfields",
        "wshare.packed.format_v1",
        "wshare.packed.format_v2",
        "wshare.packed.header",
        "wshare.packed.entropy",
        "wshare.quantize.codebooks",
        "wshare.models.weights_file",
    ]
):
    from tests.fuzz.seeds import write_seeds
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target that is named first."""
    name, corpus, *options = sys.argv[1:]
    write_seeds(name, Path(corpus))
    limits = ["-timeout=5", "-malloc_limit_mb=500", "-rss_limit_mb=2000", "-max_len=20000"]
    atheris.Setup([sys.argv[0], corpus, *limits, *options], TARGETS[name])
    atheris.Fuzz()


main()
