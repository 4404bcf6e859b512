"""Search the highest price of a bit that meets the quality target, one price for all layers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm

from wshare.compression import Network
from wshare.errors import UserError
from wshare.images import ImageFile
from wshare.journal import Journal
from wshare.layers import replaced
from wshare.logits import read_logits
from wshare.modelfile import read_model
from wshare.networkfile import read_folds
from wshare.progress import PROGRESS
from wshare.rate_distortion import Options, Quantised
from wshare.scoring import Z, check_images, measure_of, predict, predicted_low, score
from wshare.search.rate_distortion import NATS, first_guess, run, within
from wshare.storage import read_json, sha256_file, write_json
from wshare.tables import write_table

# A probe that finds a loss this far from the predicted one tells of noise.
FACTORS = (0.1, 10.0)
LOSSES = ["layer", "weights", "predicted", "measured", "factor"]
QUALITY = ["top1", "relative_accuracy", "low", "expected", "kl", "kl_high", "agreement"]
FRONT = ["slope", "bits", "compression_rate_analytic", *QUALITY, "chosen"]


def search_rate_distortion(
    settings: dict,
    spec: Path,
    weights: Path,
    images: Path,
    baseline: Path,
    extracted: Path,
    moments: Path,
    code: list[Path],
    journal: Path,
    front: Path,
    losses: Path,
    recipe: Path,
    threads: int,
) -> None:
    """Write front.csv, every price measured; losses.csv, each layer's predicted and measured loss; recipe.json.

    The journal holds each measurement as soon as it is made, as for the other methods.
    """
    choices, target = settings["options"], settings["quality_target"]
    sample = ImageFile(images)
    model = read_model(spec, weights)
    made_from = {"model": read_json(spec)["sha256"], "images": sample.fingerprint}
    folds = read_folds(model, extracted, moments, made_from, sample.batch(0)[:2], choices["fold_batch_norm"])
    reference = read_logits(baseline, sample, made_from["model"])
    scale = _Scale(model, folds, sample, reference, Options.of(choices), threads)
    rate = choices["compression_rate"]
    nats = choices["kl"] or NATS * (1 - target)
    if not rate:
        check_images(len(sample), scale.original.top1, target, settings["confidence"])
        if not nats:
            raise UserError("a quality target of 1 allows no divergence; set options.kl, in nats")
    inputs = [spec, weights, images, baseline, extracted, moments, *code]
    header = {"settings": settings, "inputs": [sha256_file(path) for path in inputs]}
    probes = len(folds[0].targets) if choices["probe_images"] else 0
    total = (1 if rate else choices["evaluations"]) + probes
    with Journal(journal, header) as log, tqdm(total=total, initial=len(log), desc="search", **PROGRESS) as progress:

        def remembered(key: tuple, measure: Callable[[], dict]) -> dict:
            if key not in log:
                log.append(key, measure())
                progress.update()
            return log[key]

        def priced(factors: dict[str, float], start: float) -> float:
            """Price at which the layers have the size asked for."""
            return within(lambda slope: scale.bits(slope, factors), 32 * scale.weights / rate, start)

        plain = dict.fromkeys(folds[0].targets, 1.0)
        start = first_guess(nats or NATS, scale.weights)
        if rate:
            start = priced(plain, start)
        rows = []
        for name, part in scale.parts(start).items() if probes else ():
            found = remembered(("probe", name), lambda: {"kl": scale.probe(name, part, choices["probe_images"])})  # noqa: B023
            factor = float(np.clip(found["kl"] / max(part.loss, 1e-12), *FACTORS))
            rows.append((name, part.shared.indices.size, part.loss, found["kl"], factor))
        factors = plain | {row[0]: row[4] for row in rows}

        def judged(slope: float) -> tuple[float, bool]:
            found = remembered(("slope", slope), lambda: scale.measure(slope, factors, settings["confidence"]))
            return found["kl_high"], min(found["low"], found["expected"]) >= target

        slope = priced(factors, start) if rate else run(judged, start, nats, choices["evaluations"])
        meets = judged(slope)[1]
        prices = {key[1]: found for key, found in log.entries().items() if key[0] == "slope"}
    write_table(front, FRONT + list(factors), _front_rows(prices, slope, 32 * scale.weights))
    write_table(losses, LOSSES, [dict(zip(LOSSES, row, strict=True)) for row in rows])
    description, chosen = read_json(spec), prices[slope]
    quality = {key: chosen[key] for key in QUALITY}
    predicted, measured = [row[2] for row in rows], [row[3] for row in rows]
    write_json(
        recipe,
        {
            "version": 1,
            "model": {"name": description["name"], "sha256": description["sha256"]},
            "search_images": sample.fingerprint,
            "settings": settings,
            "slope": slope,
            "layers": {
                name: {"shape": list(layer.shape), "factor": factors[name], "k": chosen["k"][name]}
                for name, layer in folds[0].targets.items()
            },
            "on_search_images": quality | {"measure": measure_of(sample.labels), "meets_target": meets},
            "evaluations": len(prices),
            # Of layers with one loss there is no order.
            "predicted_loss_rank_correlation": float(spearmanr(predicted, measured).statistic) if probes > 2 else None,
            "images_forwarded": {
                "search": len(prices) * len(sample),
                "probe": probes * min(choices["probe_images"], len(sample)),
                "inputs": sum(fold.images for fold in folds),
            },
        },
    )


class _Scale:
    """Measures networks that are shared at a price.

    The images of one fold, by which errors were fed back and means corrected, would flatter the result: each fold's
    images are scored by a network that only the other fold has taught (images in no fold by that of the first).
    """

    def __init__(
        self,
        model: nn.Module,
        folds: list[Network],
        sample: ImageFile,
        reference: np.ndarray,
        options: Options,
        threads: int,
    ):
        self._model, self._folds, self._sample, self._reference = model, folds, sample, reference
        self._options, self._threads = options, threads
        # Images and their mirror images taught the fold.
        self._middle = folds[0].images // 2
        self.original = score(reference, reference, sample.labels)
        self.weights = sum(layer.weights.size for layer in folds[0].targets.values())

    def parts(self, slope: float) -> dict[str, Quantised]:
        """All layers at a price, before any correction of predicted losses; the first images are new to them."""
        return self._folds[1].quantised(slope, dict.fromkeys(self._folds[1].targets, 1.0), self._options, self._threads)

    def bits(self, slope: float, factors: dict[str, float]) -> float:
        """Analytic bits at a price, as `measure` gives them."""
        parts = self._folds[0].quantised(slope, factors, self._options, self._threads)
        return sum(part.bits for part in parts.values())

    def probe(self, name: str, part: Quantised, images: int) -> float:
        """Divergence in nats with one layer alone shared, on the first images."""
        few = self._sample.part(0, min(images, self._middle))
        with replaced(self._model, self._folds[1].tensors(name, part)):
            return score(predict(self._model, few, self._threads), self._reference[: len(few)], None).kl

    def measure(self, slope: float, factors: dict[str, float], confidence: float | None) -> dict:
        """Quality on all search images and analytic bits at a price."""
        logits = []
        ends = (0, self._middle, len(self._sample))
        for taught, first, stop in zip(reversed(self._folds), ends, ends[1:], strict=False):
            parts = taught.quantised(slope, factors, self._options, self._threads)
            with replaced(self._model, taught.all_tensors(parts)):
                logits.append(predict(self._model, self._sample.part(first, stop), self._threads))
        quality = score(np.concatenate(logits), self._reference, self._sample.labels)
        share, low = predicted_low(quality.correct, self.original.correct, confidence)
        return {
            "bits": sum(part.bits for part in parts.values()),
            "top1": quality.top1,
            "relative_accuracy": share,
            "low": low,
            "expected": quality.expected,
            "kl": quality.kl,
            "kl_high": quality.kl + Z.inv_cdf(0.95) * quality.kl_error,
            "agreement": quality.agreement,
            "k": {name: len(part.shared.codebook) for name, part in parts.items()},
        }


def _front_rows(prices: dict[float, dict], chosen: float, dense: int) -> list[dict]:
    """All prices measured, ascending."""
    return [
        {"slope": price, "compression_rate_analytic": dense / found["bits"], "chosen": int(price == chosen)}
        | {key: value for key, value in found.items() if key != "k"}
        | found["k"]
        for price, found in sorted(prices.items())
    ]
