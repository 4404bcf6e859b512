"""The key reference of docs/configuration.md is what the schema says, and the manual's examples are valid."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from wshare.config.manual import BEGIN, END, Key, main, reference, renewed, sections
from wshare.config.validation import complete, schema
from wshare.errors import UserError

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "configuration.md"
MANUAL = ROOT / "config" / "README.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", MANUAL.read_text(encoding="utf-8"), flags=re.DOTALL)


def property_names(node):
    """Names under every `properties` of a schema, but for those of its conditions."""
    if isinstance(node, list):
        return set().union(*map(property_names, node))
    if not isinstance(node, dict):
        return set()
    names = set(node.get("properties", {}))
    inner = [child for key, child in node.items() if key not in ("if", "then", "properties")]
    return names | property_names(inner) | property_names(list(node.get("properties", {}).values()))


def test_page_holds_the_reference_of_the_schema():
    text = REFERENCE.read_text(encoding="utf-8")
    assert renewed(text, reference(schema())) == text, "renew it: python -m wshare.config.manual docs/configuration.md"


def test_every_key_of_the_schema_has_a_description():
    keys = [key for section in sections(schema()) for key in section.keys]
    assert [key.path for key in keys if not key.description] == []


def test_every_key_of_the_schema_is_in_the_reference():
    keys = {key.path.rpartition(".")[2] for section in sections(schema()) for key in section.keys}
    assert property_names(schema()) - keys == set()


def test_no_key_is_listed_twice():
    titled = [(section.title, key.path) for section in sections(schema()) for key in section.keys]
    assert len(titled) == len(set(titled))


def test_references_conditions_and_bounds_are_resolved():
    root = {
        "required": ["kind"],
        "properties": {
            "kind": {"enum": ["a", "b"], "description": "Which."},
            "size": {"$ref": "#/$defs/size", "default": 3},
            "options": {"type": "object", "description": "More."},
        },
        "allOf": [
            {"if": {"properties": {"kind": {"const": "a"}}}, "then": {"properties": {"options": {"$ref": "#/$defs/a"}}}}
        ],
        "$defs": {
            "size": {"type": ["integer", "null"], "minimum": 1, "maximum": 9, "description": "How large."},
            "a": {
                "properties": {
                    "list": {
                        "type": "array",
                        "minItems": 2,
                        "uniqueItems": True,
                        "items": {"type": "number", "exclusiveMinimum": 0},
                        "description": "x | y",
                    }
                }
            },
        },
    }
    top, options = sections(root)
    assert top.title == "Top level"
    assert top.keys == (
        Key("kind", "string", "required", "`a`, `b`", "Which."),
        Key("size", "integer or null", "`3`", "1 to 9", "How large."),
        Key("options", "mapping", "-", "-", "More."),
    )
    assert options.title == "`options` where `kind` is `a`"
    assert options.keys == (
        Key("options.list", "list of numbers", "-", "2 or more entries, all different, each above 0", "x | y"),
    )
    assert r"| x \| y |" in reference(root)


def test_renewed_changes_nothing_outside_the_markers():
    assert renewed(f"head\n{BEGIN}\nold\n{END}\ntail\n", "new\n") == f"head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}"])
def test_renewed_refuses_a_document_without_both_markers(text):
    with pytest.raises(UserError, match="markers are missing"):
        renewed(text, "new\n")


def test_main_prints_the_reference_or_puts_it_into_a_file(tmp_path, capsys):
    document = tmp_path / "configuration.md"
    document.write_text(f"{BEGIN}{END}", encoding="utf-8")
    main([])
    main([str(document)])
    assert capsys.readouterr().out == reference(schema())
    assert reference(schema()) in document.read_text(encoding="utf-8")


def test_the_first_example_is_a_whole_configuration():
    complete(yaml.safe_load(EXAMPLES[0]))


@pytest.mark.parametrize("example", EXAMPLES[1:])
def test_the_other_examples_fit_on_the_first(example):
    config = copy.deepcopy(yaml.safe_load(EXAMPLES[0]))
    update_config(config, yaml.safe_load(example))
    # An example may change the source: what belongs to the old one goes.
    if config["models"]["mynet"]["source"] == "python":
        del config["models"]["mynet"]["path"]
    assert json.dumps(complete(config))
