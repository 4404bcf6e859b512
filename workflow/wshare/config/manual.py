"""The key reference of docs/configuration.md, made from the configuration's schema.

`python -m wshare.config.manual` prints it; with `docs/configuration.md` behind it, it is put into that file.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wshare.config.validation import joined, resolved, schema
from wshare.errors import UserError
from wshare.files.atomic import write_text

BEGIN = "<!-- key reference: begin; made by `python -m wshare.config.manual`, do not edit -->"
END = "<!-- key reference: end -->"
NONE = "-"
PLACEHOLDERS = {"datasets": "<dataset>", "models": "<model>", "searches": "<search>", "overrides": "<layer>"}


@dataclass(frozen=True)
class Key:
    """One row of the reference; every field but `path` is Markdown."""

    path: str
    type: str
    default: str
    allowed: str
    description: str


@dataclass(frozen=True)
class Section:
    """The keys of one mapping of the configuration; `title` is Markdown."""

    title: str
    keys: tuple[Key, ...]


def reference(root: dict) -> str:
    """Markdown of all keys of a configuration schema: a table a section, in the schema's order."""
    return "\n\n".join(_table(section) for section in sections(root)) + "\n"


def sections(root: dict) -> list[Section]:
    """All mappings of a configuration schema that name their keys, each before those inside it."""
    return list(_sections(root, root, "", ""))


def renewed(text: str, reference: str) -> str:
    """A document with `reference` between its markers; UserError if it does not have both, in order."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the markers are missing; put these two lines where the reference shall stand: {BEGIN} {END}")
    return f"{head}{BEGIN}\n\n{reference}\n{END}{tail}"


def _sections(root: dict, node: dict, path: str, condition: str) -> Iterator[Section]:
    node = resolved(root, node)
    children = {name: resolved(root, child) for name, child in node.get("properties", {}).items()}
    required = node.get("required", [])
    if children:
        keys = (_key(root, joined(path, name), child, name in required) for name, child in children.items())
        yield Section((f"`{path}`" if path else "Top level") + condition, tuple(keys))
    for name, child in children.items():
        yield from _sections(root, child, joined(path, name), "")
    if isinstance(node.get("additionalProperties"), dict):
        placeholder = PLACEHOLDERS.get(path.rpartition(".")[2], "<name>")
        yield from _sections(root, node["additionalProperties"], joined(path, placeholder), "")
    for rule in node.get("allOf", []):
        ((name, test),) = rule["if"]["properties"].items()
        for option, child in rule["then"]["properties"].items():
            yield from _sections(root, child, joined(path, option), f" where `{name}` is `{test['const']}`")


def _key(root: dict, path: str, node: dict, required: bool) -> Key:
    given = _literal(node["default"]) if "default" in node else NONE
    default = "required" if required else given
    return Key(path, _type(root, node), default, _allowed(root, node) or NONE, node.get("description", ""))


def _literal(value: object) -> str:
    """A value as it is written in a configuration."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _type(root: dict, node: dict) -> str:
    if "type" not in node:
        return "string" if all(isinstance(value, str) for value in node.get("enum", [])) else "integer"
    names = node["type"] if isinstance(node["type"], list) else [node["type"]]
    words = {"object": "mapping", "boolean": "true or false"}
    if "array" in names:
        words["array"] = f"list of {_type(root, resolved(root, node['items']))}s"
    return " or ".join(words.get(name, name) for name in names)


def _allowed(root: dict, node: dict) -> str:
    """Bounds and choices, in words."""
    low, high = node.get("minimum"), node.get("maximum")
    parts = []
    if "enum" in node:
        parts.append(", ".join(map(_literal, node["enum"])))
    if low is not None and high is not None:
        parts.append(f"{low} to {high}")
    else:
        bounds = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
        parts += [f"{word} {node[bound]}" for bound, word in bounds.items() if bound in node]
    if "pattern" in node:
        parts.append(f"matches `{node['pattern']}`")
    if "minItems" in node or "minProperties" in node:
        parts.append(f"{node.get('minItems', node.get('minProperties'))} or more entries")
    if node.get("uniqueItems"):
        parts.append("all different")
    if "items" in node and (each := _allowed(root, resolved(root, node["items"]))):
        parts.append(f"each {each}")
    if "propertyNames" in node:
        parts.append(f"names: {_allowed(root, resolved(root, node['propertyNames']))}")
    return ", ".join(parts)


def _table(section: Section) -> str:
    rows = [f"### {section.title}", "", "| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for key in section.keys:
        cells = (f"`{key.path}`", key.type, key.default, key.allowed, key.description)
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def main(arguments: list[str]) -> None:
    """Print the reference, or put it into the named file."""
    text = reference(schema())
    if arguments:
        path = Path(arguments[0])
        write_text(path, renewed(path.read_text(encoding="utf-8"), text))
    else:
        print(text, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
