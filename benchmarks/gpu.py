"""Images a second on a GPU for float32 EfficientNet-Lite0: our evaluation beside plain PyTorch.

    PYTHONPATH=workflow .venv/bin/python benchmarks/gpu.py --results results/efficientnet_lite0 \
        --output benchmarks/results/gpu.csv [--repeats 8] [--rounds 5]

`--results` is the folder that the study config/efficientnet_lite0.yaml leaves; its search images, repeated, are the
images of a pass. In each round the contenders take turns; the table gives medians. Plain PyTorch finds its batches
normalised on the GPU; ours normalises them within the time, and where `images` is `host` reads and sends them, too.
`kl` is the mean divergence, in nats, from the logits of the same network on the CPU, and `other_classes` counts images
whose top-1 class differs from it.
"""

import argparse
import copy
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gather import measured
from torch import nn

from wshare.artifacts.model import read_model
from wshare.data.devices import device_of
from wshare.data.images import DeviceImages, ImageArray, ImageFile
from wshare.evaluation.predict import predict
from wshare.tasks.classification import score

COLUMNS = ["contender", "precision", "images", "batch", "images_per_second", "slowest", "fastest", "kl"]
COLUMNS += ["other_classes", "rounds", "gpu", "measured"]
EVERYTHING = 1 << 62


def wshare(model: nn.Module, images: DeviceImages, float16: bool) -> Callable:
    """Our evaluation as jobs run it."""
    return lambda: predict(model, images, threads=4, float16=float16)


def eager(model: nn.Module, images: torch.Tensor, float16: bool, batch: int) -> Callable:
    """PyTorch as it comes; in float16 as its documents advise, with autocast and channels_last."""
    order = torch.channels_last if float16 else torch.contiguous_format
    network = copy.deepcopy(model).to(memory_format=order)
    batches = [part.contiguous(memory_format=order) for part in images.split(batch)]

    def run() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=float16):
            return np.concatenate([network(part).float().cpu().numpy() for part in batches])

    return run


class Repeated(ImageArray):
    """The images of a file several times over, decoded in memory."""

    def __init__(self, source: ImageFile, repeats: int):
        super().__init__(torch.cat([source.stored(0, len(source))] * repeats), None)
        self.prepared = source.prepared


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec, weights = (arguments.results / "model" / name for name in ("model.json", "weights.safetensors"))
    source = ImageFile(arguments.results / "images" / "search.h5")
    reference = predict(read_model(spec, weights), source, threads=8)
    images, device = Repeated(source, arguments.repeats), device_of(1)
    model = read_model(spec, weights, device)
    kept, sent = DeviceImages(images, device, EVERYTHING), DeviceImages(images, device, 0)
    normalised = torch.cat(list(kept.batches()))
    runs = {
        ("pytorch", "float32", "gpu", 32): eager(model, normalised, False, 32),
        ("pytorch", "float32", "gpu", 128): eager(model, normalised, False, 128),
        ("pytorch", "float16", "gpu", 128): eager(model, normalised, True, 128),
        ("wshare", "float32", "gpu", 128): wshare(model, kept, False),
        ("wshare", "float16", "gpu", 128): wshare(model, kept, True),
        ("wshare", "float32", "host", 128): wshare(model, sent, False),
        ("wshare", "float16", "host", 128): wshare(model, sent, True),
    }
    quality = {name: score(run()[: len(reference)], reference, None) for name, run in runs.items()}
    rates: dict[tuple, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            rates[name].append(len(images) / (time.perf_counter() - started))
    with arguments.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (contender, precision, place, batch), found in rates.items():
            scored = quality[contender, precision, place, batch]
            row = [contender, precision, place, batch, round(statistics.median(found))]
            row += [round(min(found)), round(max(found)), f"{scored.kl:.2g}"]
            row += [
                round((1 - scored.figures["agreement"]) * len(reference)),
                arguments.rounds,
                torch.cuda.get_device_name(0),
                measured(),
            ]
            writer.writerow(row)
            print(*row)


if __name__ == "__main__":
    main()
