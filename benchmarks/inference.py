"""Images a second on a CPU for float32 EfficientNet-Lite0: our evaluation beside what others run it with.

    PYTHONPATH=workflow .venv-peers/bin/python benchmarks/inference.py --results results/efficientnet_lite0 \
        --output benchmarks/results/inference.csv [--images 400] [--rounds 5] [--threads 2]

`--results` is the folder that the study config/efficientnet_lite0.yaml leaves; the images are its search images. Each
contender is a process that stays, with the network ready and one pass done; in each round they take turns, one at a
time, and the table gives the median. Ours reads and normalises the images within the time, in the environment that
the workflow gives its jobs; the others find them normalised in memory. `largest_difference` is that of the logits
from the study's own. Exported networks have a fixed batch of 8.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gather import measured

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.config.environment import MALLOC
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json

COLUMNS = ["contender", "threads", "batch", "images_per_second", "slowest", "fastest", "rounds", "largest_difference"]
COLUMNS += ["measured"]
BATCH = 8


def wshare(arguments: argparse.Namespace, threads: int, batch: int) -> Callable[[], np.ndarray]:
    """Our evaluation as jobs run it: a batch a thread, channels_last."""
    torch.set_num_threads(1)
    model, images = _model(arguments.results), _images(arguments)
    return lambda: predict(model, images, threads)


def eager(arguments: argparse.Namespace, threads: int, batch: int) -> Callable[[], np.ndarray]:
    """PyTorch as it comes: contiguous tensors, its own parallel loops."""
    torch.set_num_threads(threads)
    return _over_batches(_contiguous(arguments.results), arguments, batch)


def compiled(arguments: argparse.Namespace, threads: int, batch: int) -> Callable[[], np.ndarray]:
    """torch.compile with its defaults."""
    torch.set_num_threads(threads)
    return _over_batches(torch.compile(_contiguous(arguments.results)), arguments, batch)


def onnxruntime(arguments: argparse.Namespace, threads: int, batch: int) -> Callable[[], np.ndarray]:
    """ONNX Runtime with all its graph optimizations, the default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(arguments.onnx), options, providers=["CPUExecutionProvider"])
    name, batches = session.get_inputs()[0].name, _arrays(arguments, batch)
    return lambda: np.concatenate([session.run(None, {name: images})[0] for images in batches])


def openvino_latency(arguments: argparse.Namespace, threads: int, batch: int) -> Callable[[], np.ndarray]:
    """OpenVINO, one request at a time."""
    compiled, batches = _openvino(arguments, threads, "LATENCY"), _arrays(arguments, batch)
    request = compiled.create_infer_request()
    return lambda: np.concatenate([request.infer([images])[0].copy() for images in batches])


def openvino_throughput(arguments: argparse.Namespace, threads: int, batch: int) -> Callable[[], np.ndarray]:
    """OpenVINO with as many requests side by side as it asks for."""
    import openvino

    compiled, batches = _openvino(arguments, threads, "THROUGHPUT"), _arrays(arguments, batch)
    queue, parts = openvino.AsyncInferQueue(compiled), [None] * len(batches)

    def keep(request, position: int) -> None:
        parts[position] = request.get_output_tensor().data.copy()

    queue.set_callback(keep)

    def run() -> np.ndarray:
        for position, images in enumerate(batches):
            queue.start_async([images], position)
        queue.wait_all()
        return np.concatenate(parts)

    return run


# What prepares it, whether it uses all threads, images a batch (ours chooses its own).
CONTENDERS = {
    "wshare": (wshare, True, None),
    "wshare_1_thread": (wshare, False, None),
    "pytorch_batch_32": (eager, True, 32),
    "pytorch_batch_8": (eager, True, BATCH),
    "torch_compile": (compiled, True, BATCH),
    "onnxruntime": (onnxruntime, True, BATCH),
    "openvino_latency": (openvino_latency, True, BATCH),
    "openvino_throughput": (openvino_throughput, True, BATCH),
}


def _openvino(arguments: argparse.Namespace, threads: int, hint: str):
    import openvino

    # Without the second hint it may compute in bfloat16.
    hints = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(str(arguments.onnx), "CPU", hints)


def _model(results: Path) -> torch.nn.Module:
    return read_model(results / "model/model.json", results / "model/weights.safetensors")


def _contiguous(results: Path) -> torch.nn.Module:
    return _model(results).to(memory_format=torch.contiguous_format)


def _images(arguments: argparse.Namespace) -> ImageFile:
    images = ImageFile(arguments.results / "images/search.h5", arguments.images)
    # Exported networks take full batches only.
    return ImageFile(images.path, len(images) // BATCH * BATCH)


def _batches(arguments: argparse.Namespace, batch: int) -> list[torch.Tensor]:
    return [part.contiguous() for part in torch.cat(list(_images(arguments).batches())).split(batch)]


def _arrays(arguments: argparse.Namespace, batch: int) -> list[np.ndarray]:
    return [images.numpy() for images in _batches(arguments, batch)]


def _over_batches(model: torch.nn.Module, arguments: argparse.Namespace, batch: int) -> Callable[[], np.ndarray]:
    batches = _batches(arguments, batch)

    def run() -> np.ndarray:
        with torch.no_grad():
            return torch.cat([model(images) for images in batches]).numpy()

    return run


def serve(arguments: argparse.Namespace) -> None:
    """Report one pass, then time another for each line that comes in."""
    # Libraries print to the standard output, which is for answers alone.
    answers, sys.stdout = sys.stdout, sys.stderr
    prepare, parallel, batch = CONTENDERS[arguments.serve]
    threads = arguments.threads if parallel else 1
    run = prepare(arguments, threads, batch)
    images = _images(arguments)
    model = read_json(arguments.results / "model/model.json")["sha256"]
    difference = np.abs(run() - read_outputs(arguments.results / "baseline/search.h5", images, model)).max()
    ready = {"threads": threads, "batch": batch or images.batch_size, "largest_difference": f"{difference:.1e}"}
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(len(images) / (time.perf_counter() - start), file=answers, flush=True)


def start(name: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """A process that serves one contender."""
    command = [sys.executable, __file__, "--results", str(arguments.results), "--serve", name]
    command += ["--threads", str(arguments.threads), "--images", str(arguments.images), "--onnx", str(arguments.onnx)]
    ours = {variable: str(octets) for variable, octets in MALLOC.items()} if name.startswith("wshare") else {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | ours, **pipes)


def compare(arguments: argparse.Namespace) -> list[dict]:
    """One row a contender; one that fails to start is left out and its error shown."""
    running, ready = {}, {}
    for name in arguments.only or CONTENDERS:
        process = start(name, arguments)
        answer = process.stdout.readline()
        if answer:
            running[name], ready[name] = process, json.loads(answer)
    speeds = {name: [] for name in running}
    for _ in range(arguments.rounds):
        for name, process in running.items():
            print("go", file=process.stdin, flush=True)
            speeds[name].append(float(process.stdout.readline()))
    for process in running.values():
        process.communicate()
    told = {"measured": measured()}
    return [{"contender": name} | ready[name] | _summary(values) | told for name, values in speeds.items()]


def _summary(speeds: list[float]) -> dict:
    shown = {"images_per_second": statistics.median(speeds), "slowest": min(speeds), "fastest": max(speeds)}
    return {name: round(value, 1) for name, value in shown.items()} | {"rounds": len(speeds)}


def export(arguments: argparse.Namespace) -> None:
    """The network as ONNX, for a batch of fixed size."""
    example = (torch.zeros(BATCH, *_images(arguments).shape),)
    torch.onnx.export(_contiguous(arguments.results), example, str(arguments.onnx), dynamo=True, external_data=False)


def main() -> None:
    """Export, compare and write the table; or serve one contender."""
    arguments = _arguments()
    if arguments.serve:
        serve(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.onnx = Path(folder, "network.onnx")
        export(arguments)
        rows = compare(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*(row[name] for name in COLUMNS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of the finished study")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/inference.csv"))
    parser.add_argument("--images", type=int, default=400, help="how many of the search images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="run this one alone; may be repeated")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--onnx", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
