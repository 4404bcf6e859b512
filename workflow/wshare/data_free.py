"""Data-free compression: k-means on the weights alone, in seconds, without a look at any image.

Nothing tells then what it costs: no divergence, no quality, no verdict. For a first try, and for networks whose images
are out of reach.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from wshare.calibration.clustering import cluster
from wshare.config.validation import defaults
from wshare.errors import UserError
from wshare.files.atomic import write_bytes
from wshare.models.coverage import told
from wshare.models.kinds.table import layer_of
from wshare.models.layers import Choice, inspect
from wshare.models.norms import batch_norms
from wshare.models.plain import check_network, plain_copy
from wshare.models.state import check_finite, load_state, state_of, tied
from wshare.packed.format import load_packed, pack
from wshare.packed.hashes import weights_hash
from wshare.progress import PROGRESS
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.quantize.cost import layer_bits

MOST_VALUES = 1 << 12


@dataclass(frozen=True)
class DataFree:
    """A network that was compressed without images: `model` is a copy of the one that was passed.

    `metrics` holds the sizes; of quality it says that it was not measured. `parameters` are those of the network, each
    with its status and the reason, as layers.json has them.
    """

    model: nn.Module
    metrics: dict
    parameters: list[dict]
    packed: bytes = field(repr=False)

    def __str__(self) -> str:
        nbytes = self.metrics["bytes"]
        return (
            f"{nbytes['float32']:,} bytes -> {nbytes['packed']:,} bytes, "
            f"{self.metrics['compression_rate']['on_disk']:.2f}x on disk, {self.metrics['k']} values a layer\n"
            f"{told(self.parameters)}\n"
            "data-free: no image was looked at, so nothing is known of the quality; `wshare evaluate` measures it"
        )

    def save(self, path: str | Path) -> None:
        """Write the packed file, whole or not at all; `wshare.load` reads it."""
        write_bytes(path, self.packed)

    def state_dict(self) -> dict[str, Tensor]:
        """State dict of the compressed network, in float32, as a reader of the packed file gets it."""
        return load_packed(self.packed)


def compress_data_free(
    model: nn.Module,
    k: int,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_zeros: bool = False,
    seed: int = 0,
) -> DataFree:
    """The network with k shared values in each layer, those of least squared error of the weights; no image is used.

    A layer of fewer different weights keeps them all. `include`, `exclude` and `keep_zeros` are as
    for `compress`. UserError if k is not from 1 to 4096, or for a model that `compress` would not take.
    """
    if type(k) is not int or not 1 <= k <= MOST_VALUES:
        raise UserError(f"k: {k!r}: must be a number of shared values a layer, from 1 to {MOST_VALUES}")
    check_network(model, "model")
    work = plain_copy(model, "model").cpu().float().eval()
    check_finite(work, "model")
    table = inspect(work, [], Choice(include, exclude))
    state = {name: tensor.numpy() for name, tensor in state_of(work).items()}
    settings = defaults("clustering") | {"seed": seed, "weighting": "none", "k_max": k, "keep_zeros": keep_zeros}
    settings["bins"] = max(settings["bins"], k)
    shared, bits = {}, 0
    with tqdm(table["layers"], "clustering", unit="layer", **PROGRESS) as bar:
        for entry in bar:
            layer = layer_of(work, entry["name"])
            weight = layer.weight.numpy(force=True)
            sweep = cluster(entry["name"], weight, None, settings).sweep
            codebook = sweep.codebook(min(k, len(sweep.inertia)))
            shared[layer.tensor] = Shared(codebook, nearest_indices(weight, codebook), layout=layer.layout)
            bits += layer_bits(weight.size, len(codebook))
    aliases = {alias: first for first, *others in tied(work.state_dict(keep_vars=True)) for alias in others}
    content, nbytes = pack(state, shared, batch_norms(work), {}, aliases, "entropy", weights_hash(state, shared))
    float32 = save(state_of(work))
    compressed = plain_copy(model, "model", told=False).eval()
    load_state(compressed, load_packed(content), "the packed file")
    weights = sum(tensor.indices.size for tensor in shared.values())
    metrics = {
        "model": type(work).__name__,
        "data_free": True,
        "quality": "not measured: no image was looked at",
        "k": k,
        "bytes": {"float32": len(float32)} | nbytes,
        "compression_rate": {"on_disk": len(float32) / nbytes["packed"], "analytic": 32 * weights / bits},
        "sha256": {"model": hashlib.sha256(float32).hexdigest(), "packed": hashlib.sha256(content).hexdigest()},
    }
    return DataFree(compressed, metrics, table["parameters"], content)
