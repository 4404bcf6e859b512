"""Search of one price of a bit for all layers of a network, on images in a file or in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from wshare.data.images import Images
from wshare.errors import UserError
from wshare.evaluation.intervals import Z, check_images, paired_ratio, predicted_low
from wshare.evaluation.predict import predict
from wshare.files.journal import PRICE_NAMES
from wshare.models.layers import replaced
from wshare.quantize.layer import Options, Quantised
from wshare.search.rate_distortion.network import Network
from wshare.search.rate_distortion.slope import LEAST_LOSS, NATS, aim, first_guess, run, within
from wshare.tasks.classification import Score, labels_or_reference, measure_of, score

# A probe that finds a loss this far from the predicted one tells of noise.
FACTORS = (0.1, 10.0)


# Probes are made again at the price that they lead to, so many times in all, if that is further off than this factor.
PROBES = 4


PROBED_AGAIN = 2.0


# Fewest images that say anything of a price, and the standard errors by which they must miss.
FEWEST = 100


CERTAIN = 3.0


# Share of the divergence allowed by which float16 may change the float32 network and still be searched in.
HALF_SHARE = 0.01


# Normal quantile of the one-sided 95 % bounds on what is measured without labels.
BOUND = Z.inv_cdf(0.95)


LOSSES = ["layer", "weights", "predicted", "measured", "factor"]


QUALITY = ["images", "top1", "relative_quality", "low", "expected", "expected_low", "kl", "kl_high", "agreement"]


FRONT = ["slope", "bits", "compression_rate_analytic", *QUALITY, "chosen"]


@dataclass(frozen=True)
class Found:
    """What a search found: the rows of front.csv and losses.csv, and the content of recipe.json."""

    front: list[dict]
    losses: list[dict]
    recipe: dict


class Scale:
    """Measures networks that are shared at a price.

    The images of one fold, by which errors were fed back and means corrected, would flatter the result: each fold's
    images are scored by a network that only the other fold has taught (images in no fold by that of the first).
    Attributes: `original`, the float32 network's score; `layers`, shapes by name; `weights` and `images`, how many;
    `fingerprint` of the images; `measure_name`, what top-1 is; `taught`, images and mirror images of all folds;
    `half_loss`, the divergence, in nats, by which float16 changes the float32 network; infinite where it cannot compute
    it, or is not asked for with `half`.
    """

    def __init__(
        self,
        model: nn.Module,
        folds: list[Network],
        sample: Images,
        reference: np.ndarray,
        options: Options,
        threads: int,
        half: bool = False,
    ):
        self._model, self._folds, self._sample, self._reference = model, folds, sample, reference
        self._options, self._threads = options, threads
        # Images and their mirror images taught the fold.
        self._middle = folds[0].images // 2
        self._labels = labels_or_reference(sample.labels, reference)
        self.original = score(reference, reference, self._labels)
        self.layers = {name: layer.shape for name, layer in folds[0].targets.items()}
        self.weights = sum(layer.weights.size for layer in folds[0].targets.values())
        self.images, self.fingerprint, self.measure_name = len(sample), sample.fingerprint, measure_of(sample.labels)
        self.taught = sum(fold.images for fold in folds)
        self.half_loss = self._loss_in_half() if half else math.inf

    def parts(self, slope: float, factors: dict[str, float]) -> dict[str, Quantised]:
        """All layers at a price; the first images are new to them."""
        return self._folds[1].quantised(slope, factors, self._options, self._threads)

    def bits(self, slope: float, factors: dict[str, float]) -> float:
        """Analytic bits at a price, as `measure` gives them."""
        parts = self._folds[0].quantised(slope, factors, self._options, self._threads)
        return sum(part.bits for part in parts.values())

    def probe_size(self, images: int) -> int:
        """Images of a probe, if so many are asked for: those of one fold at most."""
        return min(images, self._middle)

    def probe(self, name: str, part: Quantised, images: int) -> float:
        """Divergence in nats with one layer alone shared, on the first images."""
        few = self._sample.part(0, self.probe_size(images))
        with replaced(self._model, self._folds[1].tensors(name, part)):
            return score(predict(self._model, few, self._threads), self._reference[: len(few)], None).kl

    def measure(
        self,
        slope: float,
        factors: dict[str, float],
        confidence: float | None,
        bounds: tuple[float, float] | None,
        half: bool = False,
    ) -> dict:
        """Quality and analytic bits at a price, on all search images or on the first ones that rule it out.

        `bounds` is the divergence allowed, in nats, and the quality target; without them all images are measured.
        After the first 1/8, 1/4, ... of both folds, no less than FEWEST images, measuring stops if the price is
        ruled out. That can only reject: what passes has passed on all images, and passes wrongly no more often
        (a futility bound that does not bind; Jennison & Turnbull 2000, chapter 5).
        """
        ends = (0, self._middle, self.images)
        pairs = list(zip(reversed(self._folds), ends, ends[1:], strict=False))
        parts = [taught.quantised(slope, factors, self._options, self._threads) for taught, _, _ in pairs]
        logits, seen = np.empty_like(self._reference), np.zeros(self.images, dtype=bool)
        for share in self._looks() if bounds else (1.0,):
            for (taught, first, stop), shared in zip(pairs, parts, strict=True):
                at = first + np.count_nonzero(seen[first:stop])
                upto = min(stop, first + self._whole_batches(share * (stop - first)))
                if at == upto:
                    continue
                with replaced(self._model, taught.all_tensors(shared)):
                    logits[at:upto] = predict(self._model, self._sample.part(at, upto), self._threads, half)
                seen[at:upto] = True
            if half and not np.isfinite(logits[seen]).all():
                # Activations of a network that is broken may grow beyond its range.
                print(f"price {slope:.3g} is measured in float32: it gives values beyond the range of float16")
                return self.measure(slope, factors, confidence, bounds)
            quality = score(logits[seen], self._reference[seen], self._labels[seen])
            original = self.original.correct[seen]
            if bounds and _ruled_out(quality, original, *bounds):
                break
        share, low = predicted_low(quality.correct, original, confidence)
        return {
            "bits": sum(part.bits for part in parts[-1].values()),
            "images": int(np.count_nonzero(seen)),
            "top1": quality.top1,
            "relative_quality": share,
            "low": low,
            "expected": quality.expected,
            "expected_low": quality.expected - BOUND * quality.expected_error,
            "kl": quality.kl,
            "kl_high": quality.kl + BOUND * quality.kl_error,
            "agreement": quality.agreement,
            "k": {name: len(part.shared.codebook) for name, part in parts[-1].items()},
        }

    def _loss_in_half(self) -> float:
        try:
            logits = predict(self._model, self._sample, self._threads, half=True)
        except RuntimeError as error:
            # A network may run any operator, and some know no float16.
            print(f"float16 cannot be used: {str(error).strip().splitlines()[0]}")
            return math.inf
        # A value beyond its range makes logits infinite, or no number.
        return score(logits, self._reference, None).kl if np.isfinite(logits).all() else math.inf

    def _looks(self) -> list[float]:
        """Shares of the images after which to look, ascending, the last one 1."""
        halvings = int(math.log2(max(self.images / FEWEST, 1)))
        return [0.5**halving for halving in range(halvings, -1, -1)]

    def _whole_batches(self, images: float) -> int:
        """So many images, in whole batches: on a CPU they are then the batches of a pass over all images."""
        return math.ceil(images / self._sample.batch_size) * self._sample.batch_size


def _ruled_out(quality: Score, original: np.ndarray, nats: float, target: float) -> bool:
    """Whether divergence, relative accuracy or expected accuracy is on the wrong side by CERTAIN standard errors.

    `original` is what the float32 network has right, bool [N], of the images that `quality` is of. The divergence is
    skewed to the right, so that a mean far too high is rarer than of a normal distribution.
    """
    share, error = paired_ratio(quality.correct, original)
    return (
        quality.kl - CERTAIN * quality.kl_error > nats
        or share + CERTAIN * error < target
        or quality.expected + CERTAIN * quality.expected_error < target
    )


def measurements(scale: Scale, settings: dict) -> int:
    """Measurements that `find` makes at most, unless float32 disagrees with float16.

    UserError if the images cannot confirm the target.
    `settings` is a search of the configuration, complete, and the seed.
    """
    choices, target = settings["options"], settings["quality_target"]
    rate = choices["compression_rate"]
    if not rate:
        check_images(scale.images, scale.original.top1, target, settings["confidence"])
        if not _nats(settings):
            raise UserError("a quality target of 1 allows no divergence; set options.max_kl, in nats")
    probes = PROBES * len(scale.layers) if choices["probe_images"] else 0
    return (1 if rate else choices["evaluations"] + _searches_in_half(scale, settings)) + probes


def find(
    scale: Scale, settings: dict, model: dict[str, str], remembered: Callable[[tuple, Callable[[], dict]], dict]
) -> Found:
    """Highest price that meets the quality target, or the price of the size asked for.

    `settings` as for `measurements`; `model` holds name and sha256, for the recipe. `remembered(key, measure)`
    returns what was measured under the key before, or measures it.
    """
    choices, target = settings["options"], settings["quality_target"]
    rate, nats = choices["compression_rate"], _nats(settings)
    confidence, bounds = settings["confidence"], None if rate else (nats, target)

    def priced(factors: dict[str, float], start: float) -> float:
        """Price at which the layers have the size asked for."""
        return within(lambda slope: scale.bits(slope, factors), 32 * scale.weights / rate, start)

    factors = dict.fromkeys(scale.layers, 1.0)
    start = first_guess(nats or NATS, scale.weights)
    if rate:
        start = priced(factors, start)
    rows, probed = [], []
    while choices["probe_images"] and len(probed) < PROBES:
        at = start
        rows = _probed(scale, at, factors, choices["probe_images"], remembered)
        factors = {row["layer"]: row["factor"] for row in rows}
        probed.append((at, sum(row["measured"] for row in rows)))
        start = priced(factors, at) if rate else aim(probed, nats)
        if abs(math.log(start / at)) < math.log(PROBED_AGAIN):
            break

    measured_at: dict[tuple[str, float], dict] = {}

    def judged(slope: float, precision: str) -> tuple[float, bool]:
        if (precision, slope) not in measured_at:
            half = precision == "float16"
            measured_at[precision, slope] = remembered(
                (PRICE_NAMES[precision], slope), lambda: scale.measure(slope, factors, confidence, bounds, half)
            )
        found = measured_at[precision, slope]
        return found["kl_high"], min(found["low"], found["expected_low"]) >= target

    def verdict(slope: float, precision: str) -> tuple[bool, bool]:
        kl, meets = judged(slope, precision)
        return kl <= nats, meets

    def chosen_in(precision: str) -> float:
        return run(lambda slope: judged(slope, precision), start, nats, choices["evaluations"])

    precision = "float16" if _searches_in_half(scale, settings) else "float32"
    if scale.half_loss < math.inf:
        print(f"float16 alone costs {scale.half_loss:.2g} nats: searching in {precision}")
    slope = start if rate else chosen_in(precision)
    if verdict(slope, "float32") != verdict(slope, precision):
        print("float32 gives another verdict than float16 on the price chosen: searching again, in float32")
        precision = "float32"
        slope = chosen_in(precision)
    meets = judged(slope, "float32")[1]
    chosen = measured_at["float32", slope]
    prices = {at: found for (by, at), found in measured_at.items() if by == precision} | {slope: chosen}
    predicted, measured = [row["predicted"] for row in rows], [row["measured"] for row in rows]
    recipe = {
        "model": model,
        "search_images": scale.fingerprint,
        "settings": settings,
        "slope": slope,
        "layers": {
            name: {"shape": list(shape), "factor": factors[name], "k": chosen["k"][name]}
            for name, shape in scale.layers.items()
        },
        "on_search_images": {key: chosen[key] for key in QUALITY}
        | {"measure": scale.measure_name, "meets_target": meets},
        "evaluations": len(prices),
        "precision": precision,
        # Of layers with one loss there is no order.
        "predicted_loss_rank_correlation": float(spearmanr(predicted, measured).statistic) if len(rows) > 2 else None,
        "images_forwarded": {
            "search": sum(found["images"] for found in measured_at.values()),
            "probe": len(probed) * len(rows) * scale.probe_size(choices["probe_images"]),
            "inputs": scale.taught,
        },
    }
    return Found(_front_rows(prices, slope, 32 * scale.weights), rows, recipe)


def _probed(
    scale: Scale,
    slope: float,
    factors: dict[str, float],
    images: int,
    remembered: Callable[[tuple, Callable[[], dict]], dict],
) -> list[dict]:
    """Rows of losses.csv: each layer alone, shared at a price with these factors, on so many images."""
    rows = []
    for name, part in scale.parts(slope, factors).items():
        found = remembered(("probe", slope, name), lambda: {"kl": scale.probe(name, part, images)})  # noqa: B023
        predicted = part.loss / factors[name]
        factor = float(np.clip(found["kl"] / max(predicted, LEAST_LOSS), *FACTORS))
        row = (name, part.shared.indices.size, predicted, found["kl"], factor)
        rows.append(dict(zip(LOSSES, row, strict=True)))
    return rows


def _searches_in_half(scale: Scale, settings: dict) -> bool:
    """Whether prices are measured in float16 first."""
    return scale.half_loss <= HALF_SHARE * _nats(settings)


def _nats(settings: dict) -> float:
    """Divergence allowed."""
    return settings["options"]["max_kl"] or NATS * (1 - settings["quality_target"])


def _front_rows(prices: dict[float, dict], chosen: float, dense: int) -> list[dict]:
    """All prices measured, ascending."""
    return [
        {"slope": price, "compression_rate_analytic": dense / found["bits"], "chosen": int(price == chosen)}
        | {key: value for key, value in found.items() if key != "k"}
        | found["k"]
        for price, found in sorted(prices.items())
    ]
