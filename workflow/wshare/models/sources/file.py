"""Networks with weights in a local file: safetensors, or a state dict saved by torch."""

from pathlib import Path

from torch import Tensor

from wshare.errors import UserError
from wshare.models.description import Fetched, finish
from wshare.models.sources.table import BUILDERS, load_module, spelled
from wshare.models.state import load_state
from wshare.models.weights_file import checked_file, fitting, read_state


def fetch(settings: dict, cache: Path) -> Fetched:
    """A network by its architecture, with the weights of `settings["path"]`.

    `architecture` is a torchvision name, `timm:name`, or `python:module:function`. Preprocessing is what the library
    knows for the architecture (torchvision: of its first published weights); what your weights were trained with may
    differ: set `preprocessing`. UserError if the file is unsafe or does not fit, FormatError if it is damaged.
    """
    if not settings.get("path"):
        raise UserError("path: source 'file' needs the path of a safetensors file or a torch state dict")
    path, sha256 = checked_file(Path(settings["path"]), settings.get("sha256"))
    weights = read_state(path, key=settings.get("key"))
    return of_state(settings, weights, str(path), f"file {path} (sha256 {sha256})")


def of_state(settings: dict, weights: dict[str, Tensor], where: str, origin: str) -> Fetched:
    """A network by its architecture, as for `fetch`, with these weights; `where` names them in messages."""
    kind, name = spelled(settings["architecture"])
    module, arguments, preprocessing = load_module(BUILDERS[kind]).from_weights(name, settings, weights)
    load_state(module, fitting(weights, module.state_dict(), where), where)
    builder = {"kind": kind, "name": name, "arguments": arguments}
    return finish(module, settings, builder=builder, preprocessing=preprocessing, origin=origin)
