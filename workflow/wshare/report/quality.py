"""Quality in words, for a network of any task."""

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
    interval = f"95 % interval {low:.2%} to {high:.2%}"
    if is_agreement(metrics):
        # Against itself the float32 network is always right: true of any network, so it tells nothing.
        images = metrics["compressed"]["images"]
        return f"agreement with float32 {quality.text(after)} on {images} held-out images (no labels), {interval}"
    share = f"{metrics['relative_quality']:.2%} of float32"
    return f"{quality.label} {quality.text(before)} -> {quality.text(after)}: {share}, {interval}"
