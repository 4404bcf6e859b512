"""Networks of torch.export programs, files `.pt2`, whose layers become modules again."""

import base64
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from wshare.errors import FormatError, UserError, one_line
from wshare.models.description import Fetched, finish
from wshare.models.exported_network import ExportedNetwork, trained_calls
from wshare.models.file_kinds import check_kind
from wshare.models.preprocessing import crop_of
from wshare.models.weights_file import checked_file

KIND = "torch.export program"
_AGAIN = "export the module again, in evaluation mode, with the PyTorch that wshare runs with"


def fetch(settings: dict, cache: Path) -> Fetched:
    """The network of the program at `settings["path"]`, a file of torch.export.save.

    The program takes one input, of images [N, C, ...]; `crop` and `channels` follow from it where its sizes are fixed.
    Other preprocessing is neutral unless `preprocessing` says otherwise. Nothing that is pickled in the file is read.
    UserError if the program takes something else or was exported in training mode; FormatError for a file that is
    damaged, of another kind, or holds objects that only a pickle can hold.
    """
    path, sha256 = checked_file(Path(settings["path"]), settings.get("sha256"))
    check_kind(path, KIND)
    content = _without_pickles(path, str(path))
    program = _loaded(content, str(path))
    shape = _input(program, path)
    if trained := next(trained_calls(program), None):
        raise UserError(f"{path}: {trained} works as in training; call eval() on the module and export it again")
    one_by_one = shape[0] == 1
    known = {"channels": shape[1]} | ({"crop": crop_of(shape[2:])} if all(shape[2:]) else {})
    return finish(
        ExportedNetwork(program, one_by_one),
        settings | {"architecture": settings.get("architecture") or path.stem},
        builder={
            "kind": "torch_export",
            "name": path.stem,
            "arguments": {"program": _text(content), "one_by_one": one_by_one},
        },
        preprocessing=known,
        origin=f"{KIND} {path} (sha256 {sha256})",
    )


def build(name: str, arguments: dict) -> nn.Module:
    """The network of a program that `fetch` took from a file, without its weights."""
    content = io.BytesIO(zlib.decompress(base64.b64decode(arguments["program"])))
    return ExportedNetwork(_loaded(_without_pickles(content, name), name), arguments["one_by_one"])


def _without_pickles(archive: Path | io.BytesIO, where: str) -> bytes:
    """The file without its example inputs, which torch.export.load would unpickle; FormatError if more is pickled."""

    def plain(name: str, content: bytes) -> bytes:
        _check_plain(name, content, where)
        return b"" if "/data/sample_inputs/" in name else content

    try:
        return _rewritten(archive, plain)
    except (zipfile.BadZipFile, EOFError) as error:
        raise FormatError(f"{where}: damaged ({one_line(error)}); get it again") from None


def _rewritten(archive: Path | io.BytesIO, change: Callable[[str, bytes], bytes]) -> bytes:
    """An archive with other contents of its members: what `change` makes of the name and the content of each."""
    made = io.BytesIO()
    with zipfile.ZipFile(archive) as found, zipfile.ZipFile(made, "w") as changed:
        for name in found.namelist():
            # With the same time, the same program is the same text in model.json.
            changed.writestr(zipfile.ZipInfo(name), change(name, found.read(name)))
    return made.getvalue()


def _check_plain(name: str, content: bytes, where: str) -> None:
    compiled = "/data/aotinductor/" in name
    listed = json.loads(content)["config"].values() if name.endswith("_config.json") else ()
    if compiled or any(entry["use_pickle"] for entry in listed) or not name.rpartition("/")[0]:
        what = "compiled code" if compiled else "pickled objects, which are not read since they may run anything"
        raise FormatError(f"{where}: holds {what}; {_AGAIN}, without them")


def _loaded(content: bytes, where: str) -> ExportedProgram:
    try:
        return torch.export.load(io.BytesIO(content))
    except Exception as error:
        # Its errors have no class in common.
        raise FormatError(f"{where}: torch.export does not read it ({one_line(error)}); {_AGAIN}") from None


def _input(program: ExportedProgram, path: Path) -> list[int | None]:
    """Sizes of the input, None for those that are free."""
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise UserError(f"{path}: takes {len(names)} inputs, {', '.join(map(str, names))}; export it with images alone")
    [node] = [node for node in program.graph.nodes if node.name == names[0]]
    shape = [size if isinstance(size, int) else None for size in node.meta["val"].shape]
    if len(shape) < 3 or shape[1] is None:
        raise UserError(f"{path}: its input {names[0]} has sizes {shape}, not those of images [N, C, ...]")
    if shape[0] not in (None, 1):
        raise UserError(
            f"{path}: takes batches of {shape[0]} alone; export it with dynamic_shapes={{'{names[0]}': "
            "{0: torch.export.Dim('batch')}}, or with one image"
        )
    return shape


def _text(content: bytes) -> str:
    """The program without the values of its weights, as ASCII, for JSON."""

    def bare(name: str, kept: bytes) -> bytes:
        weight = "/data/weights/" in name and not name.endswith(".json")
        return bytes(len(kept)) if weight else kept

    return base64.b64encode(zlib.compress(_rewritten(io.BytesIO(content), bare), 9)).decode()
