"""What a run is about to do, as a text for the terminal."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from wshare.config.slices import method_of, studies
from wshare.data.datasets.table import ALL
from wshare.evaluation.chances import ADVISED, chance_of_met, has_given_size, least_images, share_of_rate
from wshare.files.benchmarks import read_benchmark
from wshare.files.sealed import read_json
from wshare.models.coverage import told
from wshare.tasks.table import is_count


def plan(config: dict, results: Path, jobs: Iterable[tuple[str, str | None]]) -> str:
    """A line for each model, one for the jobs, and one for the time if earlier runs tell it.

    `config` is complete; `jobs` are the rule and the benchmark file of each job that is to run. Of layers that no run
    has listed yet nothing is said.
    """
    jobs = list(jobs)
    counts = Counter(rule for rule, _ in jobs)
    # Layers that are about to be listed anew may differ, and the old list may be what is damaged.
    stale = {Path(file) for rule, file in jobs if rule == "inspect_model"}
    lines = ["The plan:"]
    for name in config["models"]:
        fresh = results / name / "benchmarks" / "inspect_model.tsv" not in stale
        lines.append(f"  {_model(config, results, name, fresh)}")
        lines += [f"    {line}" for line in _verdicts(config, name)]
    listed = ", ".join(f"{count} {rule}" for rule, count in counts.items() if rule not in ("all", "compress"))
    lines.append(f"  jobs known now: {listed}")
    if "inspect_model" in counts:
        lines.append("  more jobs follow once inspect_model has listed the layers")
    else:
        lines += _time([file for rule, file in jobs if file])
    return "\n".join(lines)


def chances(config: dict) -> str:
    """What the numbers of images of each model can tell, before anything is measured; empty where none is known."""
    told = {name: _verdicts(config, name) for name in config["models"]}
    lines = [f"  {name}: {line}" for name, lines in told.items() for line in lines]
    return "\n".join(["The verdicts to expect:", *lines]) if lines else ""


def _model(config: dict, results: Path, name: str, fresh: bool) -> str:
    model = config["models"][name]
    split = config["datasets"][model["dataset"]]["split"]
    searches = [search for owner, search in studies(config) if owner == name]
    parts = []
    listed = results / name / "model" / "layers.json"
    if fresh and listed.exists():
        table = read_json(listed)
        layers = table["layers"]
        parts.append(f"{len(layers)} layers with {sum(layer['weights'] for layer in layers):,} weights")
        parts.append(told(table["parameters"]))
        if any("sensitivity" in method_of(config, search).needs for search in searches):
            parts.append(f"{len(config['clustering']['candidates'])} candidates for k")
    for key, words in (("search", "search images"), ("held_out", "held-out images")):
        size = split[key]
        share = "all" if size == ALL else f"{size:.0%} of the"
        parts.append(f"{size:,} {words}" if isinstance(size, int) else f"{share} images as {words}")
    parts.append(f"searches: {', '.join(searches)}")
    return f"{name} on {model['dataset']}: {'; '.join(parts)}"


def _verdicts(config: dict, name: str) -> list[str]:
    """What these numbers of images can tell, a line for each quality target; shares of unknown totals tell nothing."""
    model = config["models"][name]
    split = config["datasets"][model["dataset"]]["split"]
    if not all(isinstance(split[key], int) for key in ("search", "held_out")):
        return []
    if not is_count(model):
        return [
            f'how likely "met" is on {split["held_out"]:,} held-out images is not known beforehand: quality is a mean '
            "of image-wise scores, and hangs on how much they differ"
        ]
    searches = [config["searches"][search] for owner, search in studies(config) if owner == name]
    return list(dict.fromkeys(verdict_chances(search, split["search"], split["held_out"]) for search in searches))


def verdict_chances(settings: dict, search: int, held_out: int) -> str:
    """How likely a search, complete as in a configuration, leads to "met" with so many images, and what that costs."""
    target, confidence = settings["quality_target"], settings["confidence"]
    asked = f"quality target {target:g} on {held_out:,} held-out images"
    least = least_images(target)
    if least is None or held_out < least:
        return f'{asked} is never "met": that takes {f"{least:,} at least" if least else "a target below 1"}'
    if has_given_size(settings):
        return f"{asked}: the size is given, and the verdict follows from it"
    kept = share_of_rate(search, held_out, target, confidence or ADVISED)
    cost = "more than these images allow" if kept is None else f"about {1 - kept:.0%} of the rate"
    if confidence is not None:
        return f'{asked}: "met" in about {confidence:.0%} of runs; this confidence costs {cost}'
    chance = chance_of_met(held_out, target)
    return f'{asked}: "met" in about {chance:.0%} of runs without a confidence; confidence {ADVISED:g} costs {cost}'


def _time(benchmarks: list[str]) -> list[str]:
    """Minutes that these jobs took when each last ran; nothing unless all of them did."""
    files = [Path(file) for file in benchmarks]
    if not files or not all(file.exists() for file in files):
        return []
    minutes = sum(seconds for file in files for seconds, _ in read_benchmark(file)) / 60
    return [
        f"  these jobs took {minutes:.1f} minutes in sum when they last ran; on several cores they run side by side"
    ]
