"""Classification networks of timm (an optional extra), pretrained or with a local checkpoint."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from wshare.errors import UserError, one_line
from wshare.models.description import Fetched, finish
from wshare.models.preprocessing import sides
from wshare.models.state import load_state
from wshare.models.weights_file import fitting, read_state
from wshare.names import closest


def fetch(settings: dict, cache: Path) -> Fetched:
    """A timm network: with the checkpoint at `settings["path"]`, or pretrained weights from timm's hub.

    `architecture` is a timm name; `weights` may give the tag of pretrained weights, such as a1h_in1k, which may also
    stand in the name after a dot. Without both, timm's default tag. Downloads are timm's own, kept under the cache.
    """
    name = settings["architecture"]
    if settings.get("weights"):
        name = f"{name}.{settings['weights']}"
    arguments = dict(settings.get("arguments") or {})
    if settings.get("path"):
        if settings.get("classes"):
            arguments = {"num_classes": settings["classes"]} | arguments
        module = build(name, arguments)
        path = Path(settings["path"]).expanduser()
        weights = read_state(path, settings.get("sha256"), settings.get("key"))
        load_state(module, fitting(weights, module.state_dict(), str(path)), str(path))
        source = f"file {path}"
        # Without a tag they may be weights of the user's own, for classes that nobody here knows.
        categories = categories_of(module) if "." in name else None
    else:
        if settings.get("sha256"):
            raise UserError(f"sha256: {settings['sha256']!r}: checks the file at path only; set path or remove the key")
        module = _pretrained(name, arguments, cache / "timm")
        source = "pretrained"
        categories = categories_of(module)
    # The tag belongs to the architecture: it decides the number of classes.
    name = ".".join(filter(None, (module.pretrained_cfg["architecture"], module.pretrained_cfg["tag"])))
    return finish(
        module,
        settings,
        builder={"kind": "timm", "name": name, "arguments": arguments},
        preprocessing=preprocessing_of(module, settings),
        categories=categories,
        origin=f"timm {name}, {source}",
    )


def build(name: str, arguments: dict) -> nn.Module:
    """The timm network `name`, with or without a tag, without weights; `arguments` go to its builder."""
    timm = _timm(name)
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except TypeError as error:
        raise UserError(f"arguments: {arguments}: timm cannot build {name} with them: {error}") from error


def from_weights(name: str, settings: dict, weights: Mapping[str, Tensor]) -> tuple[nn.Module, dict, dict]:
    """The network that weights are for, not yet filled with them; the arguments that build it; its preprocessing."""
    classes = {"num_classes": settings["classes"]} if settings.get("classes") else {}
    arguments = classes | (settings.get("arguments") or {})
    module = build(name, arguments)
    return module, arguments, preprocessing_of(module, settings)


def preprocessing_of(module: nn.Module, settings: dict) -> dict:
    """Preprocessing from timm's data configuration of a network; resize = floor(crop / crop_pct)."""
    import timm.data

    config = timm.data.resolve_model_data_config(module)
    channels, crop, _ = config["input_size"]
    given = settings.get("preprocessing") or {}
    if config["crop_mode"] != "center" and "resize" not in given:
        raise UserError(
            f"preprocessing: {settings['architecture']} was published with crop mode {config['crop_mode']!r}, and "
            "images are only resized by the shorter side and cropped at the centre here; "
            "set preprocessing.resize to accept that"
        )
    return {
        "channels": channels,
        "resize": math.floor(min(sides(given.get("crop") or crop)) / config["crop_pct"]),
        "crop": crop,
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def categories_of(module: nn.Module) -> list[str] | None:
    """Names of a pretrained network's classes by index, in timm's words; None where timm does not know the classes."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    # timm tells a collection of ImageNet by the number of its classes.
    subset = infer_imagenet_subset(module.pretrained_cfg)
    if not subset or module.num_classes != module.pretrained_cfg["num_classes"]:
        return None
    # "tabby, tabby cat": synonyms, the usual name first.
    return [names.split(", ")[0] for names in ImageNetInfo(subset).label_descriptions()]


def _pretrained(name: str, arguments: dict, cache: Path) -> nn.Module:
    timm = _timm(name)
    try:
        return timm.create_model(name, pretrained=True, cache_dir=cache, **arguments)
    except TypeError as error:
        raise UserError(f"arguments: {arguments}: timm cannot build {name} with them: {error}") from error
    except (OSError, RuntimeError) as error:
        # The hub's errors are OSErrors, whichever HTTP library it uses; timm says with RuntimeError that it has none.
        raise UserError(
            f"timm {name}: no pretrained weights ({type(error).__name__}: {one_line(error)}); get the checkpoint from "
            "the Hugging Face hub another way and set models.<name>.path to it"
        ) from error


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError(
            f"architecture: {name!r}: timm is not installed; it is an optional extra: pip install timm"
        ) from None
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(f"architecture: {name!r}: timm has no such network. {closest(base, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise UserError(f"weights: {tag!r}: timm has no such weights of {base}. {closest(tag, tags)}")
    return timm
