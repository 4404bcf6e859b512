"""Networks with weights in a local file: safetensors, or a state dict saved by torch."""

from pathlib import Path

from torch import Tensor, nn

from wshare.errors import UserError
from wshare.files.sealed import sha256_file
from wshare.models.description import Fetched, finish, refuse
from wshare.models.state import load_state
from wshare.models.weights_file import read_state


def fetch(settings: dict, cache: Path) -> Fetched:
    """A network by its architecture, with the weights of `settings["path"]`.

    `architecture` is a torchvision name, `timm:name`, or `python:module:function`. Preprocessing is what the library
    knows for the architecture (torchvision: of its first published weights); what your weights were trained with may
    differ: set `preprocessing`. UserError if the file is unsafe or does not fit, FormatError if it is damaged.
    """
    refuse(settings, ["weights", "url"])
    path = settings.get("path")
    if not path:
        raise UserError("path: source 'file' needs the path of a safetensors file or a torch state dict")
    weights = read_state(Path(path), settings.get("sha256"))
    return of_state(settings, weights, str(path), f"file {path} (sha256 {sha256_file(path)})")


def of_state(settings: dict, weights: dict[str, Tensor], where: str, origin: str) -> Fetched:
    """A network by its architecture, as for `fetch`, with these weights; `where` names them in messages."""
    module, builder, preprocessing = _architecture(settings, weights)
    load_state(module, weights, where)
    return finish(module, settings, builder=builder, preprocessing=preprocessing, origin=origin)


def _architecture(settings: dict, weights: dict[str, Tensor]) -> tuple[nn.Module, dict, dict]:
    kind, colon, name = settings["architecture"].partition(":")
    if not colon:
        kind, name = "torchvision", kind
    arguments = dict(settings.get("arguments") or {})
    classes = {"num_classes": settings["classes"]} if settings.get("classes") else {}
    if kind == "torchvision":
        from wshare.models.sources import torchvision

        arguments = classes | torchvision.aux_arguments(name, weights) | arguments
        module, preprocessing = torchvision.build(name, arguments), torchvision.usual_preprocessing(name)
    elif kind == "timm":
        from wshare.models.sources import timm

        arguments = classes | arguments
        module = timm.build(name, arguments)
        preprocessing = timm.preprocessing_of(module, settings)
    elif kind == "python":
        from wshare.models.sources import python

        module, preprocessing = python.build(name, arguments), {}
    else:
        raise UserError(
            f"architecture: {settings['architecture']!r}: give a torchvision name, timm:<name> "
            "or python:<module>:<function>"
        )
    return module, {"kind": kind, "name": name, "arguments": arguments}, preprocessing
