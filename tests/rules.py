"""The rules as text: which slice of the configuration each names, for tests that run a stage by itself."""

import re
from functools import cache
from pathlib import Path

from wshare.config import slices

RULES = Path(__file__).parents[1] / "workflow" / "rules"
HEAD = re.compile(r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", flags=re.MULTILINE | re.DOTALL)


@cache
def bodies() -> dict[str, str]:
    """Text of each rule by its name."""
    return dict(HEAD.findall("\n".join(path.read_text(encoding="utf-8") for path in sorted(RULES.glob("*.smk")))))


def settings_of_stage(config: dict, stage: str, model: str, item: str = "") -> str:
    """The settings that a rule hands to its stage, as JSON; `item` is its layer or search.

    `config` is complete. `{}` for a rule that takes none.
    """
    _, found, rest = bodies()[stage].partition("settings=settings_of(")
    if not found:
        return "{}"
    end = next(place for place in range(len(rest)) if rest[:place].count("(") < rest[:place].count(")"))
    known = slices.with_image_folders(config)
    wildcards = {"model": model, "layer" if stage == "cluster_layer" else "search": item}
    names = vars(slices) | {"slice": lambda *parts, **entries: slices.slice_of(known, wildcards, *parts, **entries)}
    return slices.text_of(eval(f"slice({rest[:end]}", names))
