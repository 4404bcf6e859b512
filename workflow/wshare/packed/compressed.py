"""A compressed network: what every search ends in, and every packed file is made from."""

from dataclasses import dataclass, field

import numpy as np

from wshare.quantize.batch_norm import FoldedNorm
from wshare.quantize.codebooks import Shared


@dataclass(frozen=True)
class Compressed:
    """What of a network is compressed.

    `shared` goes by tensor name, `folded` by batch norm; `changed` holds other tensors of the state dict that are not
    the network's. `format`, "entropy" or "fixed", is how indices are to be coded; `bits` the analytic size of the
    shared weights.
    """

    shared: dict[str, Shared]
    format: str
    bits: float
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    folded: dict[str, FoldedNorm] = field(default_factory=dict)
