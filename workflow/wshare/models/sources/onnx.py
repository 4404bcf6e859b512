"""Networks of ONNX files, whatever program wrote them, as torch modules that onnx2pytorch makes."""

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from wshare.errors import FormatError, UserError, one_line
from wshare.models.description import Fetched, finish
from wshare.models.file_kinds import check_kind
from wshare.models.preprocessing import complete_preprocessing, crop_of, input_shape
from wshare.models.weights_file import checked_file

# Largest difference from ONNX Runtime's outputs, as a share of the largest: sums in another order differ by less.
TOLERANCE = 1e-3
# Outputs below it, such as probabilities of what noise does not show, are rounding themselves.
LEAST_OUTPUT = 1e-4
# Images that both are held against each other with.
IMAGES = 2
COLOURS = (1, 3)
PACKAGES = ("onnx", "onnx2pytorch", "onnxruntime")
_OTHER = "give the network in PyTorch instead (source python)"


def fetch(settings: dict, cache: Path) -> Fetched:
    """The network of the ONNX file at `settings["path"]`.

    Its graph must have one input, of images [N, C, H, W], or [N, H, W, C] of 1 or 3 channels, or of arrays [N, C, ...]
    of one to three lengths; `crop` and `channels` follow from it where its sizes are fixed. Other preprocessing is
    neutral unless `preprocessing` says otherwise. UserError if onnx2pytorch cannot convert the graph, or its outputs
    are not ONNX Runtime's; FormatError if the file is damaged.
    """
    path, sha256 = checked_file(Path(settings["path"]), settings.get("sha256"))
    check_kind(path, "ONNX file")
    networks = _library(path)
    proto = _read(path, networks)
    shape, channels_last = _input(proto, path)
    known = {"channels": shape[0] or 3} | ({"crop": crop_of(shape[1:])} if all(shape[1:]) else {})
    preprocessing = complete_preprocessing(known, settings.get("preprocessing"))
    images = _noise(preprocessing)
    expected = _runtime_outputs(path, images, channels_last)
    network = _converted(proto, channels_last, images, expected, path, networks)
    arguments = {"graph": networks.as_text(network.file), "channels_last": channels_last}
    return finish(
        network,
        settings | {"architecture": settings.get("architecture") or path.stem},
        builder={"kind": "onnx", "name": path.stem, "arguments": arguments | {"one_by_one": network.one_by_one}},
        preprocessing=known,
        origin=f"ONNX file {path} (sha256 {sha256})",
    )


def build(name: str, arguments: dict) -> nn.Module:
    """The network of a graph that `fetch` took from an ONNX file, without its weights."""
    networks = _library(Path(name))
    proto = networks.of_text(arguments["graph"])
    return networks.OnnxNetwork(proto, arguments["channels_last"], arguments["one_by_one"])


def _library(path: Path) -> ModuleType:
    try:
        import onnxruntime  # noqa: F401

        from wshare.models import onnx_network
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise UserError(
            f"{path}: {error.name} is not installed; it is an optional extra: pip install {' '.join(PACKAGES)}"
        ) from None
    return onnx_network


def _read(path: Path, networks: ModuleType) -> object:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise FormatError(f"{path}: no ONNX file, or damaged ({one_line(error)}); get it again") from None
    return networks.simplified(proto)


def _input(proto: object, path: Path) -> tuple[tuple[int | None, ...], bool]:
    """Channels and lengths of the input, each None where it is free, and whether channels come last."""
    inputs = list(proto.graph.input)
    if len(inputs) != 1:
        raise UserError(
            f"{path}: takes {len(inputs)} inputs, {', '.join(entry.name for entry in inputs)}; networks of one input, "
            "images, can be compressed: cut the graph there (onnx.utils.extract_model)"
        )
    sizes = [axis.dim_value if axis.dim_value > 0 else None for axis in inputs[0].type.tensor_type.shape.dim]
    if not 3 <= len(sizes) <= 5:
        raise UserError(
            f"{path}: its input {inputs[0].name} has {len(sizes)} axes, not those of images [N, C, H, W] or of other "
            "arrays [N, C, ...] of one to three lengths"
        )
    channels_last = len(sizes) == 4 and sizes[3] in COLOURS and sizes[1] not in COLOURS
    return tuple(sizes[3:] + sizes[1:3] if channels_last else sizes[1:]), channels_last


def _noise(preprocessing: dict) -> Tensor:
    """Images [IMAGES, C, ...] of noise, preprocessed as real ones are."""
    shape = (IMAGES, *input_shape(preprocessing))
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    ones = [1] * (len(shape) - 2)
    mean, std = (torch.tensor(preprocessing[key]).view(1, -1, *ones) for key in ("mean", "std"))
    return (pixels - mean) / std


def _runtime_outputs(path: Path, images: Tensor, channels_last: bool) -> list[np.ndarray]:
    """What ONNX Runtime gives for each image, one at a time: a list of all outputs, [N, ...] each."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        given = images.permute(0, 2, 3, 1) if channels_last else images
        parts = [session.run(None, {name: image[None].numpy()}) for image in given.contiguous()]
    except Exception as error:
        # Its errors have no class in common but this.
        raise UserError(
            f"{path}: ONNX Runtime does not run it on an image {list(images.shape[1:])} ({one_line(error)}); set "
            "preprocessing.channels and preprocessing.crop"
        ) from None
    if any(not part.ndim or len(part) != 1 for part in parts[0]):
        raise UserError(f"{path}: an output has no axis for images; cut the graph there (onnx.utils.extract_model)")
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _converted(
    proto: object, channels_last: bool, images: Tensor, expected: list[np.ndarray], path: Path, networks: ModuleType
) -> nn.Module:
    """The torch network, which gives what ONNX Runtime does: for all images at once, or if not one by one."""
    try:
        network = networks.OnnxNetwork(proto, channels_last)
    except Exception as error:
        # The library raises whatever its parts do.
        raise UserError(f"{path}: onnx2pytorch cannot convert it ({one_line(error)}); {_OTHER}") from error
    together, reason = _difference(network, images, expected)
    if together <= TOLERANCE:
        return network
    network.one_by_one = True
    alone, reason = _difference(network, images, expected)
    if alone <= TOLERANCE:
        return network
    raise UserError(
        f"{path}: converted by onnx2pytorch, "
        + (reason or f"its outputs differ from ONNX Runtime's by up to {alone:.2g} of the largest")
        + f"; {_OTHER}"
    )


def _difference(network: nn.Module, images: Tensor, expected: list[np.ndarray]) -> tuple[float, str]:
    """Largest difference of an output, as a share of that output's largest value; infinite, and why, if it fails."""
    try:
        with torch.no_grad():
            found = network(images.clone())
    except Exception as error:
        # A graph made for one image fails in any way on two.
        return np.inf, f"it fails ({one_line(error)})"
    found = [found] if isinstance(found, Tensor) else found
    if [list(output.shape) for output in found] != [list(output.shape) for output in expected]:
        return np.inf, "its outputs have other shapes than ONNX Runtime's"
    pairs = zip(found, expected, strict=True)
    shares = [np.abs(own.numpy() - other).max() / max(np.abs(other).max(), LEAST_OUTPUT) for own, other in pairs]
    return float(max(shares)), ""
