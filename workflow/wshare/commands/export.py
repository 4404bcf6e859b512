"""`wshare export`: a packed file as a file of another runtime."""

from pathlib import Path
from typing import Annotated

import torch

from wshare.commands.common import CACHE, Arguments, Preprocessing, check_output
from wshare.errors import UserError
from wshare.exports.table import FORMATS
from wshare.models.description import Fetched
from wshare.models.registry import fetch
from wshare.models.sources.file import of_state
from wshare.models.sources.table import whole_file
from wshare.names import closest
from wshare.packed.format import load_packed


def export(
    file: Annotated[Path, "packed file"],
    /,
    *,
    to: Annotated[str, f"format to write: {', '.join(FORMATS)}"],
    output: Annotated[Path, "file to write"],
    architecture: Annotated[
        str | None,
        "torchvision name, timm:<name>, python:<module>:<function>, onnx:<file> or torch_export:<file>; "
        "for formats that hold the graph",
    ] = None,
    arguments: Arguments = {},  # noqa: B006
    preprocessing: Preprocessing = {},  # noqa: B006
) -> None:
    """Write a packed file in the format of another runtime.

    Example:
      wshare export net.wshare.safetensors --to onnx --architecture mobilenet_v2 --output net.onnx
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: no such format. {closest(to, FORMATS)}")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    check_output(output)
    chosen = FORMATS[to]
    if not chosen.needs_model:
        chosen.write(file, output, None, None)
    elif architecture is None:
        raise UserError(f"--to {to}: this format holds the network's graph; give --architecture")
    else:
        fetched = _network(architecture, file, {"arguments": arguments, "preprocessing": preprocessing})
        example = torch.zeros(1, *fetched.spec["input"])
        chosen.write(file, output, fetched.module, example, fetched.spec)
    print(f"{output}: written, {chosen.description}")


def _network(architecture: str, file: Path, settings: dict) -> Fetched:
    """The network of an architecture; weights are those of the packed file, or of the file that it was made from."""
    if whole := whole_file(architecture):
        return fetch(settings | whole, CACHE)
    return of_state(settings | {"architecture": architecture}, load_packed(file), str(file), f"packed file {file}")
