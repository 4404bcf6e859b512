"""One slope for all layers, in nats a bit: the Lagrange multiplier of rate and distortion.

The loss measured on the search images grows smoothly with the slope, so that its target is met by a secant on
logarithmic axes within a bracket. Divergence from the float32 network is the loss: it varies far less from image to
image than quality, which only confirms the choice.
"""

import math
from collections.abc import Callable

from scipy.optimize import brentq

from wshare.errors import UserError

# Share of the divergence allowed that the chosen slope must reach, unless evaluations run out.
CLOSE = 0.93
# Slopes nearer to each other than this, as a logarithm, are taken for one.
NEAREST = 0.005
# What is left of the divergence allowed when quality does not confirm it.
TIGHTER = 0.8
# What is left of it at least, however much quality says.
TIGHTEST = 1 / 16
# Share of a divergence that was not confirmed from which on one that was is near enough.
NEAR_ENOUGH = 0.9
# A first bracket: slopes this far from the guess break any network, or none.
WIDEST = 1e4
# Less than this, in nats, is no loss.
LEAST_LOSS = 1e-12
# First step towards a size, as a logarithm of the slope: about half a bit a weight.
BRACKET = math.log(2)


def first_guess(max_kl: float, weights: int) -> float:
    """Slope, in nats a bit, at which `weights` weights lose `max_kl` nats in all at high rate.

    A uniform quantizer of rate R has distortion c 4^-R, so that the slope is its derivative, 2 ln 2 times the loss.
    """
    return 2 * math.log(2) * max_kl / weights


def guess(slope: float, loss: float, max_kl: float) -> float:
    """Slope at which a network loses `max_kl` nats in all that loses `loss` at `slope`.

    Loss grows with the slope as it does in `first_guess`; the step is at most that of a search's bracket.
    """
    return slope * min(max(max_kl / max(loss, LEAST_LOSS), 1 / WIDEST), WIDEST)


def aim(probed: list[tuple[float, float]], max_kl: float) -> float:
    """Slope at which a network should lose `max_kl` nats, from slopes and the losses there, the last the nearest."""
    low = max((slope for slope, loss in probed if loss <= max_kl), default=0.0)
    high = min((slope for slope, loss in probed if loss > max_kl), default=math.inf)
    slope = guess(*probed[-1], max_kl)
    # Of a broken network the loss says little, and next to none says as little.
    if not low <= slope <= high and low and high < math.inf:
        return math.sqrt(low * high)
    return min(max(slope, low), high)


def find(measure: Callable[[float], tuple[float, float]], start: float, max_kl: float, evaluations: int) -> float:
    """Highest slope found whose divergence is at most `max_kl` nats and that is confirmed; the best of all if none is.

    `measure` returns the divergence in nats at a slope, and the quality that may be lost there for each that the target
    allows: up to 1 the target is confirmed, which counts only where the divergence fits. The best of all is the one
    that may lose least.
    """
    tried: dict[float, tuple[float, float]] = {}
    slope = rounded(start)
    while len(tried) < evaluations:
        tried[slope] = measure(slope)
        goal = _goal(tried, max_kl)
        if goal is None:
            break
        slope = rounded(_next(tried, goal, start))
        if any(abs(math.log(slope / other)) < NEAREST for other in tried):
            break
    fitting = [slope for slope, (loss, lost) in tried.items() if lost <= 1 and loss <= max_kl]
    return max(fitting) if fitting else min(tried, key=lambda slope: tried[slope][::-1])


def _goal(tried: dict[float, tuple[float, float]], max_kl: float) -> float | None:
    """Divergence to try next, in nats; None if what is confirmed is near enough to what is not, or not allowed."""
    fitting = [(loss, lost) for loss, lost in tried.values() if loss <= max_kl]
    confirmed = max((loss for loss, lost in fitting if lost <= 1), default=0.0)
    refused = min(((loss, lost) for loss, lost in fitting if lost > 1), default=None)
    if refused is None:
        return max_kl if confirmed < CLOSE * max_kl else None
    loss, lost = refused
    if confirmed >= NEAR_ENOUGH * loss:
        return None
    if confirmed > 0:
        return math.sqrt(confirmed * loss)
    # Predictions change about as the root of the divergence.
    return loss * min(max(lost**-2, TIGHTEST), TIGHTER)


def rounded(number: float) -> float:
    """Three digits: sums differ between machines in the last of sixteen, and a search must not follow them."""
    return float(f"{number:.3g}")


def within(bits: Callable[[float], float], most: float, start: float) -> float:
    """Lowest slope found at which `bits` is at most `most`, to a factor of 1 + NEAREST; `start` is a guess.

    UserError if no slope is high enough.
    """
    small: list[float] = []

    def excess(logarithm: float) -> float:
        over = bits(math.exp(logarithm)) - most
        if over <= 0:
            small.append(math.exp(logarithm))
        return over

    high = math.log(start)
    while excess(high) > 0:
        high += BRACKET
        if high > math.log(start * WIDEST):
            raise UserError(
                f"no slope makes the layers as small as {most / 8:,.0f} bytes; lower options.compression_rate"
            )
    low = high - BRACKET
    while low > math.log(start / WIDEST) and excess(low) <= 0:
        high, low = low, low - BRACKET
    if low > math.log(start / WIDEST):
        brentq(excess, low, high, xtol=NEAREST)
    return min(small)


def _next(tried: dict[float, tuple[float, float]], max_kl: float, start: float) -> float:
    """Slope between the nearest below the divergence allowed and the nearest above it, where it should be right."""
    goal = math.log(max_kl * (1 + CLOSE) / 2)
    points = sorted((math.log(slope), math.log(max(loss, 1e-9))) for slope, (loss, _) in tried.items())
    below = max((p for p in points if p[1] <= goal), default=None)
    above = min((p for p in points if p[1] > goal and (below is None or p[0] > below[0])), default=None)
    if below and above:
        share = (goal - below[1]) / (above[1] - below[1])
        # Never at the bracket's end, where a secant may stick.
        return math.exp(below[0] + min(max(share, 0.1), 0.9) * (above[0] - below[0]))
    known, loss = below or above or points[0]
    step = min(max(goal - loss, -math.log(WIDEST)), math.log(WIDEST))
    return min(max(math.exp(known + step), start / WIDEST), start * WIDEST)
