"""Quality in words, for a network of any task."""

from wshare.report.texts import percent
from wshare.tasks.task import AGREEMENT, Figure, Task, own_figures


def is_agreement(content: dict) -> bool:
    """Whether quality was counted against the float32 network's own outputs, by a metrics.json or the like."""
    return content["measure"] == AGREEMENT


def counted_as(task: Task, metrics: dict) -> str:
    """What quality counts: the measure, or what is predicted where there are no labels."""
    return task.PREDICTED if is_agreement(metrics) else metrics["measure"]


def written(figure: Figure, value: float) -> str:
    """A figure's number as a page writes it."""
    return figure.text(value).replace("%", " %")


def in_a_line(task: Task, metrics: dict) -> str:
    """Quality of a compressed network, its interval, and what it is held against, for a terminal."""
    quality = own_figures(task)[0]
    before, after = metrics["float32"][quality.key], metrics["compressed"][quality.key]
    low, high = metrics["relative_quality_ci95"]
    interval = f"95 % interval {kept_share(low, metrics)} to {kept_share(high, metrics)}"
    if is_agreement(metrics):
        # Against itself the float32 network is always right: true of any network, so it tells nothing.
        images = metrics["compressed"]["images"]
        return (
            f"agreement with float32 {kept_share(after, metrics)} on {images} held-out images (no labels), {interval}"
        )
    share = f"{kept_share(metrics['relative_quality'], metrics)} of float32"
    return f"{quality.label} {quality.text(before)} -> {quality.text(after)}: {share}, {interval}"


def kept_share(share: float, metrics: dict) -> str:
    """A share of float32's quality for a terminal; one below the target never reads as the target."""
    return percent(share, metrics["quality_target"]).replace(" ", "")


def reasons(metrics: dict) -> list[str]:
    """Sentences under a verdict: the counts that it rests on, what makes it undecided, and what would decide it."""
    needed = metrics["needed"]
    told = [_basis(metrics)]
    passes = metrics["gradient_epochs"]
    if passes is not None:
        counted = {0: "no pass helped", 1: "one pass"}.get(passes, f"{passes} passes")
        told.append(f"gradient calibration, without labels, on the search images: {counted}")
    told.append(f"interval: {metrics['interval']['method']}, at {metrics['interval']['confidence']:.0%}")
    if metrics["accepted"] is False:
        told.append(
            f"none of the {metrics['evaluations']:,} combinations measured was accepted; this one may lose "
            "least of them: lower quality_target or confidence, or give more search images"
        )
    if needed["balanced_images"]:
        share = metrics["constant"]["relative_quality"]
        better = (
            "about as many images of each class, by their labels or by the float32 network's own predictions"
            if metrics["counts"]
            else "images that differ more, or a quality that counts what is rare"
        )
        told.append(f"these images cannot tell: one output for all of them keeps {share:.2%}; give {better}")
    if metrics["verdict"] == "undecided" and needed["held_out_images"]:
        told.append(f"about {needed['held_out_images']:,} held-out images would probably decide it")
    if metrics["verdict"] == "undecided" and needed["quality_target"]:
        told.append(f"a target of {needed['quality_target']:g} would be met")
    return told


def _basis(metrics: dict) -> str:
    """The counts that a verdict rests on, or the mean and its standard deviation."""
    counts, images = metrics["counts"], f"{metrics['compressed']['images']:,} held-out images"
    if not counts:
        deviation = f"with a standard deviation of {metrics['deviation']:.2%}"
        return f"the share rests on {images}, {deviation}"
    if is_agreement(metrics):
        return f"{counts['kept']:,} of {images} are predicted as by float32"
    right = counts["kept"] + counts["lost"]
    return f"of {images} float32 has {right:,} right: {counts['lost']:,} were lost, {counts['gained']:,} gained"
