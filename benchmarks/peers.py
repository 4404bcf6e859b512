"""Compress EfficientNet-Lite0 by other methods and score each on the same held-out images.

    PYTHONPATH=workflow .venv-peers/bin/python benchmarks/peers.py --results results/efficientnet_lite0 \
        --output benchmarks/results/peers.csv [--only NAME]

`--results` is the folder that the study config/efficientnet_lite0.yaml leaves; requirements.txt beside this file says
how to make .venv-peers. Rows of other methods that the table already holds stay, so `--only` adds to it.

Rate is the size of model/weights.safetensors over the bytes, and the bytes count everything that a network needs:
a file's size on disk ("file"), or ("analytic") indices of fixed width, codebooks or scales, and the tensors that are
kept: of a batch norm its scale and shift in float16, which is what the network is then scored with, and the other
biases in float32. No method sees a held-out image; the settings that are lists below are no choice but a sweep.
"""

import argparse
import csv
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gather import measured
from torch import nn

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.files.tables import write_table
from wshare.quantize.codebooks import shared_weight
from wshare.quantize.kmeans import sweep
from wshare.tasks.classification import score

COLUMNS = [
    "method",
    "setting",
    "bytes",
    "rate",
    "size_basis",
    "top1",
    "relative_quality",
    "kl",
    "agreement",
    "seconds",
    "measured",
]
THREADS = 2
CALIBRATION = 128
CLIPS = np.linspace(0.4, 1, 25)
NORM_TYPES = {"weight": "bn.gamma", "bias": "bn.beta", "running_mean": "bn.mean", "running_var": "bn.var"}
# nncodec takes every batch norm of a torch network to have this eps.
NNCODEC_EPS = 1e-5


@dataclass(frozen=True)
class Study:
    """The network, its state as arrays, and the search images."""

    model: nn.Module
    state: dict[str, np.ndarray]
    search: ImageFile

    @property
    def layers(self) -> dict[str, np.ndarray]:
        """Weights of the convolutions and linear layers, by module name."""
        modules = self.model.named_modules()
        return {name: self.state[f"{name}.weight"] for name, part in modules if isinstance(part, nn.Conv2d | nn.Linear)}

    @property
    def norms(self) -> dict[str, tuple[str, float]]:
        """Layer before and eps of each batch norm, by module name."""
        kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
        chain = [(name, part) for name, part in self.model.named_modules() if isinstance(part, kinds)]
        pairs = itertools.pairwise(chain)
        return {name: (layer, part.eps) for (layer, _), (name, part) in pairs if isinstance(part, nn.BatchNorm2d)}


@dataclass(frozen=True)
class Point:
    """One compressed network: what its state becomes, and its size in bytes."""

    setting: str
    state: dict[str, np.ndarray]
    size: float
    basis: str
    seconds: float


def nncodec(study: Study) -> Iterator[Point]:
    """ISO/IEC 15938-17 with the defaults: one quantization parameter, dependent quantization, DeepCABAC."""
    for qp in range(-34, -17, 2):
        yield _coded(study, f"qp {qp}", fold=False, qp=qp)


def nncodec_tuned(study: Study) -> Iterator[Point]:
    """The same with batch norms folded, its heuristic parameter a layer, and coarser steps for other tensors.

    Of its options that train nothing, these did best on the search images at about 7x.
    """
    for qp in range(-42, -25, 2):
        yield _coded(study, f"qp {qp}", fold=True, qp=qp, opt_qp=True, nonweight_qp=-43)


def _coded(study: Study, setting: str, fold: bool, **options) -> Point:
    from nncodec import nnc

    tensors = {name: value for name, value in study.state.items() if value.dtype == np.float32}
    if fold:
        for name, (_, eps) in study.norms.items():
            key = f"{name}.running_var"
            tensors[key] = tensors[key] + np.float32(eps - NNCODEC_EPS)
        options |= {"bnf": True, "block_id_and_param_type": _blocks(study, tensors)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.nnc")
        start = time.perf_counter()
        nnc.compress(tensors, bitstream_path=str(path), row_skipping=True, **options)
        seconds = time.perf_counter() - start
        decoded = nnc.decompress(str(path))
        print(f"decoded in {time.perf_counter() - start - seconds:.2f} s")
        return Point(setting, _unfolded(study, decoded) if fold else decoded, path.stat().st_size, "file", seconds)


def _blocks(study: Study, tensors: dict[str, np.ndarray]) -> dict[str, dict]:
    """Which batch norm follows which layer, in nncodec's words; its own guess fails on this network."""
    types = {name: "weight" if value.ndim > 1 else "bias" for name, value in tensors.items()}
    blocks = dict.fromkeys(tensors)
    for name, (layer, _) in study.norms.items():
        blocks[f"{layer}.weight"] = layer
        for key, kind in NORM_TYPES.items():
            types[f"{name}.{key}"], blocks[f"{name}.{key}"] = kind, layer
    return {"block_identifier": blocks, "parameter_type": types}


def _unfolded(study: Study, decoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    state = dict(decoded)
    for name, (layer, eps) in study.norms.items():
        state |= _norm(name, eps, state.pop(f"{layer}.weight_scaling"), state.pop(f"{layer}.weight.bias"))
    return state


def _norm(name: str, eps: float, scale: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    """A batch norm that multiplies by `scale` and adds `shift`."""
    neutral = {"running_mean": np.zeros_like(shift), "running_var": np.full_like(shift, 1 - eps)}
    return {f"{name}.{key}": value for key, value in ({"weight": scale, "bias": shift} | neutral).items()}


def coremltools_kmeans(study: Study) -> Iterator[Point]:
    """coremltools' PostTrainingPalettizer: k-means a tensor, or a group of channels."""
    from coremltools.optimize.torch.palettization import PostTrainingPalettizer, PostTrainingPalettizerConfig

    for bits in (8, 6, 4, 3):
        config = PostTrainingPalettizerConfig.from_dict({"global_config": {"n_bits": bits}})
        yield _palettized(study, f"{bits} bit", bits, PostTrainingPalettizer(study.model, config))
    for group in (16, 4):
        settings = {"n_bits": 4, "granularity": "per_grouped_channel", "group_size": group}
        config = PostTrainingPalettizerConfig.from_dict({"global_config": settings})
        yield _palettized(study, f"4 bit, groups of {group}", 4, PostTrainingPalettizer(study.model, config))


def coremltools_skm(study: Study) -> Iterator[Point]:
    """coremltools' SKMPalettizer: k-means weighted by squared gradients of search images."""
    from coremltools.optimize.torch.palettization import SKMPalettizer, SKMPalettizerConfig

    pixels = torch.cat(list(study.search.batches()))[:CALIBRATION]
    labels = torch.from_numpy(study.search.labels[:CALIBRATION])
    samples = [(pixels[[i]], labels[[i]]) for i in range(CALIBRATION)]
    for bits in (4, 6):
        config = {"global_config": {"n_bits": bits}, "calibration_nsamples": CALIBRATION}
        palettizer = SKMPalettizer(study.model, SKMPalettizerConfig.from_dict(config))
        yield _palettized(study, f"{bits} bit", bits, palettizer, dataloader=samples, loss_fn=_loss)


def _loss(model: nn.Module, sample: tuple) -> torch.Tensor:
    return nn.functional.cross_entropy(model(sample[0]), sample[1])


def _palettized(study: Study, setting: str, bits: int, palettizer, **arguments) -> Point:
    start = time.perf_counter()
    model = palettizer.compress(**arguments)
    seconds = time.perf_counter() - start
    tables = {name: value for name, value in model.state_dict().items() if name.endswith("lut")}
    weights, octets = {}, 0.0
    for name in study.layers:
        # Core ML stores lookup tables, and weights that fit no group, in float16.
        weight = model.get_submodule(name).weight.detach().half().float()
        table = [value for key, value in tables.items() if key.startswith(f"{name}.")]
        octets += weight.numel() * bits / 8 + 2 * table[0].numel() if table else 2 * weight.numel()
        weights[name] = weight.numpy()
    return _analytic(study, setting, weights, octets, seconds)


def round_to_nearest(study: Study) -> Iterator[Point]:
    """Symmetric integers with one float16 scale an output channel, from the largest weight."""
    for bits in (8, 4, 3):
        yield _rounded(study, bits, np.ones(1))


def round_to_nearest_clipped(study: Study) -> Iterator[Point]:
    """The same with the scale of least squared error among some shares of the largest weight."""
    for bits in (8, 4, 3):
        yield _rounded(study, bits, CLIPS)


def _rounded(study: Study, bits: int, clips: np.ndarray) -> Point:
    start = time.perf_counter()
    weights = {name: _integers(weight, bits, clips) for name, weight in study.layers.items()}
    octets = sum(weight.size * bits / 8 + 2 * len(weight) for weight in weights.values())
    return _analytic(study, f"int{bits}", weights, octets, time.perf_counter() - start)


def _integers(weight: np.ndarray, bits: int, clips: np.ndarray) -> np.ndarray:
    top = 2 ** (bits - 1) - 1
    flat = weight.reshape(len(weight), -1)
    best, least = None, np.full(len(flat), np.inf)
    for clip in clips:
        scale = (clip * np.abs(flat).max(1, keepdims=True) / top).astype(np.float16).astype(np.float32)
        divisor = np.where(scale > 0, scale, 1)
        rounded = np.clip(np.rint(flat / divisor), -top - 1, top) * scale
        error = ((rounded - flat) ** 2).sum(1)
        best = rounded if best is None else np.where((error < least)[:, None], rounded, best)
        least = np.minimum(error, least)
    return best.reshape(weight.shape)


def uniform_kmeans(study: Study) -> Iterator[Point]:
    """Our exact k-means with the same k in every layer: no search, no entropy coding."""
    for k in (256, 64, 32, 16):
        start = time.perf_counter()
        codebooks = {name: sweep(weight, k_max=k).codebook(k) for name, weight in study.layers.items()}
        weights = {name: shared_weight(weight, codebooks[name]) for name, weight in study.layers.items()}
        seconds = time.perf_counter() - start
        bits = {name: np.ceil(np.log2(len(codebook))) for name, codebook in codebooks.items()}
        octets = sum(weight.size * bits[name] / 8 + codebooks[name].nbytes for name, weight in weights.items())
        yield _analytic(study, f"k {k}", weights, octets, seconds)


def _analytic(study: Study, setting: str, weights: dict[str, np.ndarray], octets: float, seconds: float) -> Point:
    """A point whose layers take `octets`; batch norms and biases are added to them."""
    state = {f"{name}.weight": weight for name, weight in weights.items()}
    for name, (_, eps) in study.norms.items():
        gamma, beta, mean, variance = (study.state[f"{name}.{key}"] for key in NORM_TYPES)
        scale = gamma / np.sqrt(variance + np.float32(eps))
        halves = [value.astype(np.float16) for value in (scale, beta - mean * scale)]
        octets += sum(value.nbytes for value in halves)
        state |= _norm(name, eps, *(value.astype(np.float32) for value in halves))
    for name in study.layers:
        octets += study.state[f"{name}.bias"].nbytes if f"{name}.bias" in study.state else 0
    return Point(setting, state, octets, "analytic", seconds)


PEERS = {
    function.__name__: function
    for function in (
        nncodec,
        nncodec_tuned,
        round_to_nearest,
        round_to_nearest_clipped,
        uniform_kmeans,
        coremltools_kmeans,
        coremltools_skm,
    )
}


def main() -> None:
    """Write the table anew after each point: some take minutes."""
    arguments = _arguments()
    logging.disable(logging.INFO)
    # predict runs batches side by side, one core each.
    torch.set_num_threads(1)
    paths = [arguments.results / "model" / name for name in ("model.json", "weights.safetensors")]
    model, search = read_model(*paths), ImageFile(arguments.results / "images/search.h5")
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    held_out = ImageFile(arguments.results / "images/held_out.h5")
    reference = read_outputs(arguments.results / "baseline/held_out.h5", held_out)
    float32 = paths[1].stat().st_size
    names = arguments.only or list(PEERS)
    rows = [row for row in _read(arguments.output) if row["method"] not in names]
    for name in names:
        for point in PEERS[name](Study(read_model(*paths), state, search)):
            row = {"method": name, "setting": point.setting, "bytes": round(point.size), "size_basis": point.basis}
            row |= {"rate": float32 / point.size, "seconds": point.seconds, "measured": measured()}
            _load(model, state | point.state)
            rows.append(_shown(row | _quality(model, held_out, reference)))
            print(*rows[-1].values(), flush=True)
            write_table(arguments.output, COLUMNS, rows)


def _load(model: nn.Module, state: dict[str, np.ndarray]) -> None:
    own = model.state_dict()
    model.load_state_dict({key: torch.from_numpy(np.array(state[key])).reshape(own[key].shape) for key in own})


def _quality(model: nn.Module, images: ImageFile, reference: np.ndarray) -> dict[str, float]:
    result = score(predict(model, images, THREADS), reference, images.labels)
    float32 = (reference.argmax(1) == images.labels).mean()
    quality = {"top1": result.quality, "kl": result.kl, "agreement": result.figures["agreement"]}
    return quality | {"relative_quality": result.quality / float32}


def _shown(row: dict) -> dict:
    """Columns in order, numbers to five digits but for the bytes."""
    values = {name: row[name] for name in COLUMNS}
    return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in values.items()}


def _read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of the finished study")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/peers.csv"))
    parser.add_argument("--only", action="append", choices=PEERS, help="run this method alone; may be repeated")
    return parser.parse_args()


if __name__ == "__main__":
    main()
