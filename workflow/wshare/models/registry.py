"""Networks by their source: fetched with their weights, or built again without."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models.description import Fetched, replace_part
from wshare.models.plain import make_plain, unwrapped
from wshare.models.sources.table import BUILDERS, SOURCES, load_module
from wshare.models.state import load_state
from wshare.names import closest


def fetch(settings: dict, cache: Path) -> Fetched:
    """The network that `settings` (one entry of `models` in the configuration) names, with its weights.

    `cache` is the folder for downloads. UserError tells what cannot be used, and the next step.
    """
    source = settings["source"]
    fetched = [name for name, row in SOURCES.items() if not row.trained]
    if source not in fetched:
        raise UserError(f"source: {source!r}: no such source. {closest(source, fetched)}")
    _refuse_unread(settings)
    return load_module(SOURCES[source].module).fetch(settings, Path(cache))


def build(spec: dict) -> nn.Module:
    """The architecture of `spec` in eval mode, without its dropped modules; the weights mean nothing yet."""
    builder = spec["builder"]
    if builder["kind"] not in BUILDERS:
        raise UserError(f"builder: {builder['kind']!r}: no such kind. {closest(builder['kind'], BUILDERS)}")
    module = unwrapped(load_module(BUILDERS[builder["kind"]]).build(builder["name"], builder["arguments"])).eval()
    make_plain(module)
    module = module.float()
    for name in spec["dropped"]:
        replace_part(module, name, None)
    return module


def load(spec: dict, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of `spec` with `weights`, as `state_of` gives them; tied tensors need one name only.

    UserError names the first tensors that are missing, unexpected or of another shape.
    """
    module = build(spec)
    load_state(module, weights, spec["name"])
    return module


def _refuse_unread(settings: dict) -> None:
    """UserError if a key has a value that other sources read, and the one that is named never does."""
    own = SOURCES[settings["source"]].keys
    others = {key for row in SOURCES.values() if not row.trained for key in row.keys}
    for key in sorted(others - set(own)):
        if settings.get(key):
            raise UserError(f"{key}: {settings[key]!r}: source {settings['source']!r} does not read it; remove the key")
