"""Classification networks of torchvision, with the weights that it publishes."""

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import torchvision
from torch import Tensor, nn

from wshare.errors import UserError
from wshare.files.downloads import download
from wshare.files.sealed import sha256_file
from wshare.models.description import Fetched, finish
from wshare.models.state import load_state
from wshare.models.weights_file import read_state
from wshare.names import closest

# Their weights were made from TensorFlow's, with auxiliary heads and another normalisation of the input.
FROM_TENSORFLOW = ("googlenet", "inception_v3")


def fetch(settings: dict, cache: Path) -> Fetched:
    """A torchvision network with published weights, from `settings["path"]`, the cache, or the network.

    `weights` is a name of the network's weights enum, such as IMAGENET1K_V1; without it torchvision's DEFAULT, the
    best it has. `url` is the base of a mirror. Preprocessing and published accuracy come from the weights' meta data.
    The file is checked by `sha256` if given, else by the hash that its published name carries.
    """
    name = settings["architecture"]
    _require(name)
    weights = _weights(name, settings.get("weights"))
    path, where = _weights_file(settings, weights.url, cache)
    state = read_state(path)
    arguments = _pretrained_arguments(name, weights) | (settings.get("arguments") or {})
    module = build(name, arguments)
    load_state(module, _current_names(state), str(path))
    top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return finish(
        module,
        settings,
        builder={"kind": "torchvision", "name": name, "arguments": arguments},
        preprocessing=_preprocessing(weights),
        origin=f"torchvision {type(weights).__name__}.{weights.name} ({where})",
        categories=weights.meta["categories"],
        published=None if top1 is None else {"top1": float(top1), "dataset": "ImageNet-1K"},
    )


def build(name: str, arguments: dict) -> nn.Module:
    """The torchvision network `name` without weights; `arguments` go to its builder."""
    _require(name)
    if name in FROM_TENSORFLOW:
        # Their own initialisation takes seconds, for weights that are overwritten at once.
        arguments = {"init_weights": False} | arguments
    try:
        return torchvision.models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"arguments: {arguments}: torchvision cannot build {name} with them: {error}") from error


def from_weights(name: str, settings: dict, weights: Mapping[str, Tensor]) -> tuple[nn.Module, dict, dict]:
    """The network that weights are for, not yet filled with them; the arguments that build it; its preprocessing.

    The names of the weights tell whether it has auxiliary heads. Preprocessing is that of the first weights that were
    published for it.
    """
    classes = {"num_classes": settings["classes"]} if settings.get("classes") else {}
    heads = any(key.startswith(("aux1.", "aux2.", "AuxLogits.")) for key in weights)
    aux = {"aux_logits": heads} if name in FROM_TENSORFLOW else {}
    arguments = classes | aux | (settings.get("arguments") or {})
    module = build(name, arguments)
    return module, arguments, _preprocessing(next(iter(torchvision.models.get_model_weights(name))))


def _require(name: str) -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UserError(
            f"architecture: {name!r}: torchvision has no such classification network. {closest(name, names)}"
        )


def _weights(name: str, wanted: str | None) -> Enum:
    known = torchvision.models.get_model_weights(name)
    short = (wanted or "DEFAULT").removeprefix(f"{known.__name__}.")
    if short not in known.__members__:
        raise UserError(f"weights: {wanted!r}: {name} has no such weights. {closest(short, known.__members__)}")
    return known[short]


def _weights_file(settings: dict, url: str, cache: Path) -> tuple[Path, str]:
    """The checked file, and the URL or path it comes from."""
    file_name = url.rsplit("/", 1)[-1]
    digits = re.search(r"-([0-9a-f]{8,})\.\w+$", file_name)
    expected = (settings.get("sha256") or "").lower() or (digits.group(1) if digits else "")
    if not settings.get("path"):
        if settings.get("url"):
            url = f"{settings['url'].rstrip('/')}/{file_name}"
        return download(url, cache / "torchvision" / file_name, sha256_prefix=expected), url
    path = Path(settings["path"])
    if not path.is_file():
        raise UserError(f"path: {path}: no such file; correct path, or remove it to download {url}")
    got = sha256_file(path)
    if not got.startswith(expected):
        raise UserError(
            f"path: {path}: not {file_name}: expected sha256 {expected}, got {got}; get that file again, "
            "or use source 'file' for weights of your own"
        )
    return path, str(path)


def _pretrained_arguments(name: str, weights: Enum) -> dict:
    """What torchvision's builders set by themselves when they are given weights."""
    arguments = {"num_classes": len(weights.meta["categories"])}
    if name in FROM_TENSORFLOW:
        arguments |= {"aux_logits": True, "transform_input": True}
    if name.startswith("vit_"):
        arguments |= {"image_size": weights.meta["min_size"][0]}
    return arguments


def _current_names(state: dict) -> dict:
    """Names as the network has them now: DenseNet's files are older than its code."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name): value for name, value in state.items()}


def _preprocessing(weights: Enum) -> dict:
    transforms = weights.transforms()
    return {
        "channels": len(transforms.mean),
        "resize": transforms.resize_size[0],
        "crop": transforms.crop_size[0],
        "interpolation": transforms.interpolation.value,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }
