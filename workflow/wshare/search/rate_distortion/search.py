"""Search of the one slope, in nats a bit, at which all layers are quantised: the steps, from guess to choice.

1. Guess: the slope at which a uniform quantizer of high rate would lose the divergence allowed (`slope.first_guess`).
2. Probe: quantise all layers at the guess, and measure what each alone loses on a few images. The ratio of measured and
   predicted loss becomes the layer's sensitivity scale; the sum of the losses tells where the slope should be. Probe
   again there, if that is far off.
3. With gradient calibration: find how many passes over one half's images help on the other's (`_Search._passes`); all
   networks from here on are taught by so many (`gradient`).
4. Search: measure the whole network at one slope after the other, by a secant within a bracket, until its divergence
   is close below the one allowed and its quality confirms it (`slope.find`).
5. Or, where a size is asked for, take the slope that gives it (`slope.within`).

The images of one half, by which errors were fed back and means corrected, would flatter the result: each half's images
are scored by a network that only the other half has taught. The network that is packed is taught by both.
"""

import logging
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial

import numpy as np

from wshare.errors import UserError
from wshare.evaluation.chances import MAX_KL
from wshare.evaluation.head import output_layer
from wshare.models.folding import folded_norms
from wshare.models.norms import batch_norms
from wshare.packed.compressed import Compressed
from wshare.quantize.formats import INTEGER_WIDTHS
from wshare.quantize.layer import Options, Quantised
from wshare.search.evaluator import Evaluator, Key, Part
from wshare.search.method import Artifacts, Found, Setting, entry
from wshare.search.rate_distortion.gradient import calibrated, recalled, recorded
from wshare.search.rate_distortion.network import Network, is_positive
from wshare.search.rate_distortion.slope import LEAST_LOSS, aim, find, first_guess, guess, rounded, within
from wshare.search.run import LOSSES

# A probe that finds a loss this far from the predicted one tells of noise.
SCALES = (0.1, 10.0)
# Probes are made again at the slope that they lead to, so many times in all, if it is further off than this factor.
PROBES = 4
PROBED_AGAIN = 2.0
# Passes of gradient calibration, one number after the other while the divergence falls to this share of it.
EPOCHS = (1, 4, 16)
WORTH = 0.98
# Share of the divergence allowed by which float16 may change the float32 network and still be searched in.
FLOAT16_SHARE = 0.01

# Teaches the layers of a network further, by search images from one up to another.
Calibrate = Callable[[Network, dict[str, Quantised], int, int], dict[str, Quantised]]

_log = logging.getLogger(__name__)


class Space:
    """Layers ready to be quantised at any slope: by what each half of the images tells, or by all."""

    def __init__(self, artifacts: Artifacts, options: dict, threads: int):
        self.artifacts, self.threads = artifacts, threads
        self.options, self._fold = Options.of(options), options["fold_batch_norm"]

    @cached_property
    def folded(self) -> dict[str, str]:
        """The batch norm to be folded into each layer that has one, by a traced pass of two images."""
        if not self._fold:
            return {}
        model, layers = self.artifacts.model, list(self.artifacts.layers)
        return folded_norms(model, layers, self.artifacts.images.batch(0)[:2])

    @cached_property
    def halves(self) -> list[Network]:
        """The layers by what each half tells, with images that are no search images."""
        first, second = (self._network(self.artifacts.calibration.taught(half), self.folded) for half in range(2))
        return [first, second.sharing(first)]

    def whole(self, folded: dict[str, str]) -> Network:
        """The layers by what all images tell together, with these batch norms folded."""
        return self._network(self.artifacts.calibration.together(), folded)

    def parts(self, layers: Mapping[str, Setting], images: int, calibrate: Calibrate | None = None) -> list[Part]:
        """The network that each half's images are scored by: the one that the other half has taught.

        `calibrate` teaches it further, by gradient, with the images that it does not score.
        """
        border = self.artifacts.calibration.first_half
        # Images in no half are scored by the network of the first.
        first, second = (0, border), (border, images)
        found = []
        for half, scored, others in zip(self.halves[::-1], (first, second), (second, first), strict=True):
            taught = half.quantised(layers, self.options, self.threads)
            taught = calibrate(half, taught, *others) if calibrate else taught
            found.append(Part(*scored, half.compressed(taught)))
        return found

    def widths(self, layers: Mapping[str, Setting]) -> tuple | None:
        """Of a format of integers, the width of each layer in both halves' networks, which tells all of them."""
        if self.options.format not in INTEGER_WIDTHS:
            return None
        return tuple(half.widths(layers, self.options, self.threads) for half in self.halves)

    def _network(self, statistics: Mapping, folded: dict[str, str]) -> Network:
        return Network.of(self.artifacts.model, self.artifacts.fisher, statistics, folded, self.threads)


class RateDistortion:
    """The search method `rate_distortion`."""

    version = 3

    def prepare(self, artifacts: Artifacts, options: dict, threads: int) -> Space:
        """The layers, from their importance and calibration statistics."""
        return Space(artifacts, options, threads)

    def budget(self, space: Space, options: dict) -> int:
        """Measurements at most, unless float32 disagrees with float16."""
        passes = len(EPOCHS) + 1 if options["gradient_calibration"] else 0
        if _is_settled(options):
            return 1 + passes
        probes = PROBES * len(space.artifacts.layers) if options["probe_images"] else 0
        return (1 if options["compression_rate"] else options["evaluations"]) + probes + passes

    def search(self, space: Space, evaluator: Evaluator, settings: dict) -> Found:
        """Highest slope that meets the quality target, or the slope of the size asked for."""
        if not settings["options"]["compression_rate"] and not _max_kl(settings):
            raise UserError("a quality target of 1 allows no divergence; set options.max_kl, in nats")
        return _Search(space, evaluator, settings).found()

    def realise(self, space: Space, layers: Mapping[str, Setting]) -> Compressed:
        """All layers at their slopes, taught by all images."""
        norms = list(batch_norms(space.artifacts.model))
        folded = {
            name: entry(name, setting, "batch_norm", norms.__contains__, "the name of a batch norm of the network")
            for name, setting in layers.items()
            if "batch_norm" in setting
        }
        network = space.whole(folded)
        found = network.quantised(layers, space.options, space.threads)
        if any("numbers" in setting for setting in layers.values()):
            found = {name: recalled(network, name, layer, layers[name]) for name, layer in found.items()}
        for name, setting in layers.items():
            if "output_scale" in setting:
                factor = entry(name, setting, "output_scale", is_positive, "a number above 0")
                found = network.scaled(found, name, factor)
        return network.compressed(found)


class _Search:
    """One search: the sensitivity scales once they are probed, and the slopes that were measured with them."""

    def __init__(self, space: Space, evaluator: Evaluator, settings: dict):
        self.space, self.evaluator = space, evaluator
        self.options, self.target = settings["options"], settings["quality_target"]
        self.max_kl = min(_max_kl(settings), evaluator.most_kl)
        self.weights = sum(layer.weights.size for layer in space.halves[0].layers.values())
        self.scales = dict.fromkeys(space.artifacts.layers, 1.0)
        self.losses: list[dict] = []
        self.probed: list[tuple[float, float]] = []
        self.seed, self.epochs = settings["seed"], 0
        self.slopes: dict[tuple, float] = {}

    def found(self) -> Found:
        """Probe, search, and tell what was found."""
        start = self._probe()
        # A size that is asked for takes one measurement, in float32.
        precision = "float32" if self.options["compression_rate"] else self._precision()
        if self.options["gradient_calibration"]:
            start = self._passes(start)
        slope = start if self.options["compression_rate"] else self._chosen(start, precision)
        if self._verdict(slope, "float32") != self._verdict(slope, precision):
            _log.info("float32 gives another verdict than float16 on the slope chosen: searching again, in float32")
            precision = "float32"
            slope = self._chosen(start, precision)
        chosen = _key(slope, "float32", self.epochs)
        points = {
            key: {"slope": key[1], "output_scale": row["output_scale"]} | self._pooled(row)
            for key, row in self.evaluator.measured.items()
            if key == _key(key[1], precision, self.epochs) or key == chosen
        }
        # A slope that was measured in both is one point.
        if precision != "float32":
            points.pop(_key(slope, precision, self.epochs), None)
        return Found(
            layers={
                name: setting | {"k": self.evaluator.measured[chosen]["k"][name]} | self._output_scale(name, chosen)
                for name, setting in self._recorded(slope).items()
            },
            chosen=chosen,
            points=points,
            met=frozenset(key for key in points if self.evaluator.accepts(self.evaluator.measured[key])),
            losses=self.losses,
            images_forwarded={
                "probe": len(self.probed) * len(self.losses) * self._probe_images(),
                "calibration": self.space.artifacts.calibration.images,
            }
            | ({"gradient": self._forwarded()} if self.options["gradient_calibration"] else {}),
            notes={
                "precision": precision,
                "predicted_loss_rank_correlation": self._correlation(),
                "gradient_epochs": self.epochs if self.options["gradient_calibration"] else None,
            },
        )

    @cached_property
    def _output_layer(self) -> str | None:
        """The layer by which the network's outputs are multiplied, if that is asked for and there is one."""
        artifacts = self.space.artifacts
        if not self.options["output_scale"]:
            return None
        sample = artifacts.images.batch(0)[:2]
        found = output_layer(self.evaluator.task, artifacts.model, artifacts.layers, sample)
        return None if found in self.space.folded else found

    def _passes(self, start: float) -> float:
        """Set the passes of gradient calibration, by what a half teaches of the other; returns the slope to start from.

        One after the other, while that helps: too many teach a network the images of its half by heart.
        """
        slope = self._first(rounded(start))
        best = self._measured(slope, "float32", 0, None)["pooled_kl"]
        for epochs in EPOCHS:
            kl = self._measured(slope, "float32", epochs, None)["pooled_kl"]
            _log.info("%d passes of gradient calibration at slope %.3g: %.4g nats of %.4g", epochs, slope, kl, best)
            if kl > WORTH * best:
                break
            self.epochs, best = epochs, kl
        return start if self.options["compression_rate"] else rounded(guess(start, best, self.max_kl))

    def _probe(self) -> float:
        """Set the sensitivity scales; returns the slope to start from."""
        start = rounded(first_guess(self.max_kl or MAX_KL, self.weights))
        if self.options["compression_rate"]:
            start = self._of_size(start)
        while self.options["probe_images"] and not _is_settled(self.options) and len(self.probed) < PROBES:
            at, widths = start, self.space.widths(self._settings(start))
            self.losses = self._probe_layers(at)
            self.scales = {row["layer"]: row["sensitivity_scale"] for row in self.losses}
            self.probed.append((at, sum(row["measured"] for row in self.losses)))
            start = self._of_size(at) if self.options["compression_rate"] else rounded(aim(self.probed, self.max_kl))
            if abs(math.log(start / at)) < math.log(PROBED_AGAIN):
                break
            # What was probed is what there is to measure.
            if widths is not None and widths == self.space.widths(self._settings(start)):
                break
        return start

    def _probe_layers(self, slope: float) -> list[dict]:
        """Rows of losses.csv: each layer alone at a slope, on the first images, which are new to its network."""
        network, rows = self.space.halves[1], []
        quantised = network.quantised(self._settings(slope), self.space.options, self.space.threads)
        for name, layer in quantised.items():
            alone = _alone(network, name, layer)
            kl = self.evaluator.probe(("probe", slope, name), alone, self._probe_images())
            predicted = layer.loss / self.scales[name]
            scale = rounded(float(np.clip(kl / max(predicted, LEAST_LOSS), *SCALES)))
            rows.append(dict(zip(LOSSES, (name, layer.shared.indices.size, predicted, kl, scale), strict=True)))
        return rows

    def _of_size(self, start: float) -> float:
        """Slope at which the layers have the size asked for."""
        network, most = self.space.halves[0], 32 * self.weights / self.options["compression_rate"]

        def bits(slope: float) -> float:
            layers = network.quantised(self._settings(slope), self.space.options, self.space.threads)
            return sum(layer.bits for layer in layers.values())

        return within(bits, most, start)

    def _row(self, slope: float, precision: str) -> dict:
        slope = self._first(slope)
        bound = None if self.options["compression_rate"] else self.max_kl
        return self._measured(slope, precision, self.epochs, bound)

    def _measured(self, slope: float, precision: str, epochs: int, bound: float | None) -> dict:
        calibrate = partial(self._calibrated, epochs) if epochs else None
        return self.evaluator.measure(
            _key(slope, precision, epochs),
            lambda: self.space.parts(self._settings(slope), len(self.evaluator.images), calibrate),
            bound,
            precision == "float16",
            self._output_layer is not None,
        )

    def _calibrated(
        self, epochs: int, network: Network, layers: dict[str, Quantised], first: int, stop: int
    ) -> dict[str, Quantised]:
        """The layers taught by so many passes over search images from `first` up to `stop`."""
        task, model, reference = self.evaluator.task, self.space.artifacts.model, self.evaluator.reference[first:stop]
        images = self.evaluator.images.part(first, stop)
        return calibrated(task, model, network, layers, images, reference, epochs, self.seed)

    def _recorded(self, slope: float) -> dict[str, Setting]:
        """Settings of the layers, with the numbers that all search images have taught."""
        settings = self._settings(slope)
        if not self.epochs:
            return settings
        network, images = self.space.whole(self.space.folded), len(self.evaluator.images)
        layers = network.quantised(settings, self.space.options, self.space.threads)
        numbers = recorded(network, self._calibrated(self.epochs, network, layers, 0, images))
        return {name: setting | numbers[name] for name, setting in settings.items()}

    def _forwarded(self) -> int:
        """Images that gradient calibration has gone through, in all measurements and for the network to be packed."""
        passes = sum(epochs for _, _, epochs in self.evaluator.measured) + self.epochs
        # Each half of the images once a pass.
        return passes * len(self.evaluator.images)

    def _judged(self, slope: float, precision: str) -> tuple[float, float]:
        """Divergence at a slope, and the quality that may be lost for each that the target allows."""
        row = self._row(slope, precision)
        return row["pooled_kl_high"], (1 - min(row["low"], row["expected_low"])) / max(1 - self.target, LEAST_LOSS)

    def _verdict(self, slope: float, precision: str) -> tuple[bool, bool]:
        row = self._row(slope, precision)
        return row["pooled_kl_high"] <= self.max_kl, self.evaluator.accepts(row)

    def _chosen(self, start: float, precision: str) -> float:
        found = find(lambda slope: self._judged(slope, precision), start, self.max_kl, self.options["evaluations"])
        return self._first(found)

    def _first(self, slope: float) -> float:
        """The slope itself, or the first one of the same network: with integers, many slopes give one."""
        widths = self.space.widths(self._settings(slope))
        return slope if widths is None else self.slopes.setdefault(widths, slope)

    def _settings(self, slope: float) -> dict[str, Setting]:
        folded = self.space.folded
        return {
            name: {"slope": slope, "sensitivity_scale": scale}
            | ({"batch_norm": folded[name]} if name in folded else {})
            for name, scale in self.scales.items()
        }

    def _output_scale(self, name: str, chosen: Key) -> Setting:
        """Entry of the setting of the layer that gives the network's outputs: the number that multiplies them."""
        scale = self.evaluator.measured[chosen]["output_scale"]
        return {"output_scale": scale} if name == self._output_layer and scale != 1 else {}

    def _pooled(self, row: dict) -> dict[str, float]:
        """Columns of front.csv for the divergence on search images and further ones, if there are any."""
        further = self.space.artifacts.calibration.further
        return {name: row[name] for name in ("pooled_kl", "pooled_kl_high")} if further else {}

    def _probe_images(self) -> int:
        """Images of a probe: those of one half at most."""
        return min(self.options["probe_images"], self.space.artifacts.calibration.first_half)

    def _precision(self) -> str:
        """That in which slopes are measured first."""
        loss = self.evaluator.float16_loss
        precision = "float16" if loss <= FLOAT16_SHARE * self.max_kl else "float32"
        if loss < math.inf:
            _log.info("float16 alone costs %.2g nats: searching in %s", loss, precision)
        return precision

    def _correlation(self) -> float | None:
        """Rank correlation of predicted and measured losses; of layers with one loss there is no order."""
        # Not at the top: it takes a second, and recipes are applied without.
        from scipy.stats import spearmanr

        predicted, measured = ([row[name] for row in self.losses] for name in ("predicted", "measured"))
        return float(spearmanr(predicted, measured).statistic) if len(self.losses) > 2 else None


def _is_settled(options: dict) -> bool:
    """Whether the slope chooses nothing: all layers have integers of one width."""
    return len(INTEGER_WIDTHS.get(options["format"], ())) == 1


def _alone(network: Network, name: str, layer: Quantised) -> Callable[[], Compressed]:
    return lambda: network.compressed({name: layer})


def _key(slope: float, precision: str, epochs: int) -> Key:
    return (precision, slope, epochs)


def _max_kl(settings: dict) -> float:
    """Divergence allowed, in nats."""
    return settings["options"]["max_kl"] or MAX_KL * (1 - settings["quality_target"])


METHOD = RateDistortion()
