"""Every problem of a configuration is found, and told in one line."""

import ast
import copy
import re

import pytest
import yaml

from tests.unit.config.base import BASE, KEYS, PHOTOS, ROOT, edited, problems
from wshare.config.validation import PACKAGE, RENAMED, RENAMED_VALUES, complete, complete_search, schema
from wshare.data.datasets import table as images
from wshare.errors import UserError
from wshare.models.sources import table as networks

TOP_LEVEL = ", ".join(map(repr, schema()["properties"]))


def test_defaults_are_filled_at_every_level():
    config = complete(BASE)
    assert config["seed"] == 0
    assert config["clustering"] == {
        "method": "exact",
        "k_max": 256,
        "bins": 16384,
        "weighting": "none",
        "keep_zeros": False,
        "candidates": [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128],
    }
    assert config["sensitivity"].keys() == {"images", "layers_per_job"}
    assert config["packing"] == {"format": "fixed", "batch_norm": "auto"}
    assert config["calibration"] == {"images": 512}
    assert config["models"]["m"]["layers"] == {"include": [], "exclude": [], "overrides": {}}
    assert config["models"]["m"]["training"].keys() == {"epochs", "learning_rate", "batch_size", "shift", "floor"}
    assert config["models"]["m"]["path"] is None
    assert "weights" in config["models"]["f"]
    assert config["datasets"]["d"]["enlarge"] is True
    assert config["searches"]["s"]["quality_target"] == 0.99
    assert [set(config["searches"][name]["options"]) for name in "stu"] == [
        {"evaluations"},
        {"samples", "population", "generations", "rescored", "seed"},
        {"max_bits"},
    ]


def test_what_the_user_sets_stays_and_the_argument_is_not_touched():
    config = edited(("clustering.k_max", 16), ("searches.t.options.samples", 3), ("models.m.training.epochs", 1))
    before = copy.deepcopy(config)
    full = complete(config)
    assert config == before
    assert full["clustering"]["k_max"] == 16
    assert full["searches"]["t"]["options"]["samples"] == 3
    assert full["models"]["m"]["training"]["epochs"] == 1
    # Two models do not share one default.
    full["models"]["m"]["layers"]["include"].append("x")
    assert full["models"]["f"]["layers"]["include"] == []
    assert complete(config)["models"]["m"]["layers"]["include"] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert complete(config | {"image_folder": "folder"})


@pytest.mark.parametrize("section", ["clustering", "importance", "sensitivity", "packing"])
def test_the_default_study_shows_the_defaults_of_the_schema(section):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    # `packing.format` is left out where all searches have their own, or none needs another.
    default = complete(BASE)[section]
    assert config[section].items() <= default.items()
    assert default.keys() - config[section].keys() <= {"format"}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("seed", -1, "-1 is less than the minimum of 0"),
        ("seed", True, "True is not of type 'integer'"),
        ("image_folder", 3, "3 is not of type 'string', 'null'"),
        ("datasets.d", None, "None is not of type 'object'"),
        ("datasets.d.enlarge", "yes", "'yes' is not of type 'boolean'"),
        ("datasets.folder.on_bad_image", "skp", "'skp' is not one of stop, skip. Did you mean 'skip'?"),
        ("datasets.d.split.search", 0, "0 is less than or equal to the minimum of 0"),
        ("models.m.classes", 1, "1 is less than the minimum of 2"),
        ("models.m.preprocessing.channels", 0, "0 is less than the minimum of 1"),
        ("models.m.preprocessing.mean", 0.5, "0.5 is not of type 'array'"),
        ("models.m.training.learning_rate", 0, "0 is less than or equal to the minimum of 0"),
        ("models.m.training.floor", 1.1, "1.1 is greater than the maximum of 1"),
        ("models.m.layers.include", "conv", "'conv' is not of type 'array'"),
        ("clustering.k_max", 4097, "4097 is greater than the maximum of 4096"),
        ("clustering.bins", "many", "'many' is not of type 'integer'"),
        ("clustering.candidates", [2, 2], "[2, 2] has non-unique elements"),
        ("searches.s.quality_target", 0, "0 is less than or equal to the minimum of 0"),
        ("searches.s.confidence", 1, "1 is greater than or equal to the maximum of 1"),
        ("searches.t.options.samples", 2, "2 is less than the minimum of 3"),
        ("searches.u.options.max_bits", 13, "13 is greater than the maximum of 12"),
        ("packing.batch_norm", "float8", "'float8' is not one of auto, float16, float32. Did you mean 'float32'?"),
        ("seed", 3.0, "3.0 is not of type 'integer'"),
    ],
)
def test_a_value_of_a_wrong_type_or_out_of_bounds_is_refused(path, value, expected):
    assert problems(edited((path, value))) == [f"{path}: {expected}"]


@pytest.mark.parametrize(
    ("key", "value"), [("weights", "V1"), ("url", "a"), ("path", "a"), ("sha256", "0" * 64), ("classes", 10)]
)
def test_keys_that_training_does_not_read_are_refused(key, value):
    assert problems(edited((f"models.m.{key}", value))) == [
        f"models.m.{key}: source 'train' does not read it; remove the key"
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sede", "sede: unknown key. Did you mean 'seed'?"),
        ("clustering.kmax", "clustering.kmax: unknown key. Did you mean 'k_max'?"),
        ("importance.image", "importance.image: unknown key. Did you mean 'images'?"),
        ("sensitivity.layers", "sensitivity.layers: unknown key. Did you mean 'layers_per_job'?"),
        ("packing.batchnorm", "packing.batchnorm: unknown key. Did you mean 'batch_norm'?"),
        ("datasets.d.sorce", "datasets.d.sorce: unknown key. Did you mean 'source'?"),
        ("datasets.d.split.heldout", "datasets.d.split.heldout: unknown key. Did you mean 'held_out'?"),
        ("models.m.datset", "models.m.datset: unknown key. Did you mean 'dataset'?"),
        ("models.m.training.epoch", "models.m.training.epoch: unknown key. Did you mean 'epochs'?"),
        ("models.m.preprocessing.sdt", "models.m.preprocessing.sdt: unknown key. Did you mean 'std'?"),
        ("models.m.layers.exclud", "models.m.layers.exclud: unknown key. Did you mean 'exclude'?"),
        ("models.m.layers.overrides.a/b.bin", "models.m.layers.overrides.a.b.bin: unknown key. Did you mean 'bins'?"),
        ("searches.s.qualty_target", "searches.s.qualty_target: unknown key. Did you mean 'quality_target'?"),
        ("searches.s.options.evaluation", "searches.s.options.evaluation: unknown key. Did you mean 'evaluations'?"),
        ("searches.t.options.sample", "searches.t.options.sample: unknown key. Did you mean 'samples'?"),
        ("searches.u.options.samples", "searches.u.options.samples: unknown key. Known: 'max_bits'."),
        ("zzz", f"zzz: unknown key. Known: {TOP_LEVEL}."),
    ],
)
def test_an_unknown_key_is_refused_at_every_level(path, expected):
    assert problems(edited((path, 3))) == [expected]


def test_all_problems_are_listed_at_once_in_order():
    config = edited(
        ("sede", 1),
        ("clustering.method", "exat"),
        ("clustering.k_max", 0),
        ("clustering.candidates", [2, 0, "x"]),
        ("searches.s.quality_target", 1.5),
        ("models.m.source", None),
        ("models.m.layers", []),
        ("datasets.d.split", {"train": 1}),
    )
    found = problems(config)
    assert found == sorted(found)
    assert {line.partition(":")[0] for line in found} == {
        "sede",
        "clustering.method",
        "clustering.k_max",
        "clustering.candidates[1]",
        "clustering.candidates[2]",
        "searches.s.quality_target",
        "models.m.source",
        "models.m.layers",
        "datasets.d.split.search",
        "datasets.d.split.held_out",
    }
    assert "clustering.method: 'exat' is not one of exact, lloyd, sklearn. Did you mean 'exact'?" in found


@pytest.mark.parametrize("key", ["datasets", "models", "searches"])
def test_required_keys(key):
    assert problems({name: value for name, value in BASE.items() if name != key}) == [f"{key}: required, but missing"]
    assert len(problems(edited((key, {})))) == 1


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([("models.m.dataset", "dd")], "models.m.dataset: 'dd' is not in datasets. Did you mean 'd'?"),
        (
            [("models.m.searches", ["s", "tt"])],
            "models.m.searches[1]: 'tt' is not in searches. Did you mean 't'?",
        ),
        ([("datasets.d.source", "python")], "datasets.d.function: required for source 'python'"),
        ([("image_folder", None)], "datasets.folder.path: a folder of images is needed"),
        ([("datasets.d.split", {"search": 1, "held_out": 1})], "datasets.d.split.train: required, since models.m"),
        ([("models.f.source", "file")], "models.f.path: required for source 'file'"),
        ([("models.a b", BASE["models"]["m"])], "models.a b: a name has letters"),
        ([("models./", BASE["models"]["m"])], "models..: a name has letters"),
        ([("searches.a|b", BASE["searches"]["s"])], "searches.a|b: a name has letters"),
        ([("models.f.sha256", "12")], "models.f.sha256: '12' does not match"),
        ([("datasets.d.split.search", 1.5)], "datasets.d.split.search: 1.5 is neither a count"),
        ([("datasets.d.split.search", 0.5)], "datasets.d.split: the shares add up to 1.1"),
        ([("datasets.d.path", "there")], "datasets.d.path: source 'digits' does not read it"),
        ([("datasets.folder.function", "a:b")], "datasets.folder.function: source 'imagefolder' does not read it"),
        ([("datasets.d.labels", False)], "datasets.d.labels: source 'digits' does not read it; remove the key"),
        (
            [("datasets.folder.labels", False), ("datasets.folder.class_map", "sorted")],
            "datasets.folder.class_map: not read with labels: false",
        ),
        (
            [("searches.r.options", {"compression_rate": 8, "max_kl": 0.1})],
            "searches.r.options.max_kl: not read with compression_rate; remove one of the two keys",
        ),
        ([("datasets.d.on_bad_image", "skip")], "datasets.d.on_bad_image: source 'digits' does not read it; remove"),
        ([("datasets.p", PHOTOS | {"enlarge": False})], "datasets.p.enlarge: source 'photos' does not read it"),
        (
            [("datasets.p", PHOTOS | {"split": {"search": 0.5, "held_out": 9}})],
            "datasets.p.split.search: 0.5 is a share, and crops have no total; give a count",
        ),
        ([("datasets.folder.labels", ["a"])], "datasets.folder.labels: source 'imagefolder' has no columns; give true"),
        ([("datasets.d.split.search", "al")], "datasets.d.split.search: 'al' does not match '^all$'"),
        ([("datasets.d.split.search", "all")], "datasets.d.split: the shares add up to 1.6"),
        (
            [("datasets.p", PHOTOS | {"split": {"search": 600, "held_out": "all"}})],
            "datasets.p.split.held_out: 'all' is",
        ),
        ([("datasets.folder.held_out", {})], "datasets.folder.held_out: {} should be non-empty"),
        ([("datasets.folder.held_out", {"path": "images"})], "datasets.folder.held_out: names the search images; give"),
        (
            [("datasets.folder.held_out", {"pth": "a"})],
            "datasets.folder.held_out.pth: unknown key. Did you mean 'path'?",
        ),
        ([("datasets.d.held_out", {"path": "a"})], "datasets.d.held_out.path: source 'digits' does not read it"),
        (
            [("datasets.d.held_out", {"source": "imagefolder"})],
            "datasets.d.held_out.path: a folder of images is needed",
        ),
        ([("datasets.d.held_out", {"source": "table"})], "datasets.d.held_out.path: required for source 'table'"),
        (
            [("datasets.d.held_out", {"source": "photos"})],
            "datasets.d.held_out: source 'photos' deals its crops itself",
        ),
        ([("datasets.p", PHOTOS | {"held_out": {"source": "digits"}})], "datasets.p.held_out: source 'photos' deals"),
        ([("datasets.p", PHOTOS), ("models.m.dataset", "p")], "models.m.dataset: 'p' has no labels to train on"),
        (
            [("datasets.folder.labels", False), ("models.m.dataset", "folder")],
            "models.m.dataset: 'folder' has no labels to train on",
        ),
        ([("models.f.training.epochs", 7)], "models.f.training: source 'torchvision' does not read it"),
        ([("clustering.bins", 99)], "clustering.bins: 99 bins cannot hold k_max 256"),
        (
            [("models.m.layers.overrides", {"conv": {"k_max": 32, "bins": 16}})],
            "models.m.layers.overrides.'conv'.bins: 16 bins cannot hold k_max 32",
        ),
    ],
)
def test_what_the_parts_say_of_each_other_must_fit(edits, expected):
    (line,) = problems(edited(*edits))
    assert line.startswith(expected)


def test_sizes_are_of_the_collection_that_a_split_comes_from():
    split = {"train": 0.5, "search": 0.5, "held_out": "all"}
    given = edited(("datasets.d.split", split), ("datasets.d.held_out", {"source": "imagefolder", "path": "there"}))
    assert complete(given)["datasets"]["d"]["split"] == split
    del given["datasets"]["d"]["held_out"]
    assert problems(given) == ["datasets.d.split: the shares add up to 2, which is more than all images"]


def test_images_without_labels_serve_a_network_that_is_not_trained():
    assert complete(edited(("datasets.p", PHOTOS), ("models.f.dataset", "p")))["datasets"]["p"]["labels"] is True
    assert complete(edited(("datasets.folder.labels", False)))["datasets"]["folder"]["labels"] is False


@pytest.mark.parametrize("key", ["include", "exclude", "overrides"])
def test_a_pattern_that_is_no_regular_expression_is_refused(key):
    config = edited((f"models.m.layers.{key}", {"re:(": {}} if key == "overrides" else ["conv", "re:("]))
    (line,) = problems(config)
    assert line.startswith(f"models.m.layers.{key}.'re:(': not a regular expression (")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("searches.s.quality_target", ".nan"),
        ("models.m.training.learning_rate", ".inf"),
        ("datasets.d.split.search", ".inf"),
        ("models.m.arguments", "{width: [1, .nan]}"),
        ("models.m.arguments", "{since: 2020-01-01}"),
    ],
)
def test_values_that_json_does_not_know_are_refused(path, text):
    assert any(line.startswith(path) and "finite" in line for line in problems(edited((path, yaml.safe_load(text)))))


def test_keys_that_are_no_text_are_refused():
    assert problems(BASE | {1: 2, False: 3, "sede": 4}) == [
        f"1: unknown key. Known: {TOP_LEVEL}.",
        f"False: unknown key. Known: {TOP_LEVEL}.",
        "sede: unknown key. Did you mean 'seed'?",
    ]


def test_a_search_without_method_has_that_one_problem():
    assert problems(edited(("searches.s", {"options": {"evaluations": 3}}))) == [
        "searches.s.method: required, but missing"
    ]


def test_every_object_of_the_schema_refuses_unknown_keys():
    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            free = path.endswith(("properties/arguments", "properties/options"))
            if "properties" in node and "/if" not in path and "/then" not in path:
                assert node.get("additionalProperties") is False, path
            elif node.get("type") == "object":
                assert isinstance(node.get("additionalProperties"), dict) or free, path
            for key, child in node.items():
                walk(child, f"{path}/{key}")

    walk(schema(), "")


def strings_of_the_code() -> set[str]:
    """All texts in the package's code but its docstrings, and the names after a dot or bracket in the rules."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    for file in PACKAGE.parent.rglob("*.smk"):
        found |= set(re.findall(r"""["'](\w+)["']""", file.read_text(encoding="utf-8")))
    return found


@pytest.mark.slow
def test_the_code_reads_every_key_of_the_schema():
    assert KEYS - strings_of_the_code() == set()


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([("inputs", {"images": 3})], "inputs: renamed to calibration"),
        # The folder counts under its new name: no line says that it is missing.
        ([("images", "elsewhere"), ("image_folder", None)], "images: renamed to image_folder"),
        ([("searches.r.options", {"kl": 0.1})], "searches.r.options.kl: renamed to max_kl"),
        ([("models.f.source", "wheel")], "models.f.source: 'wheel' was renamed to 'efficientnet_lite'"),
    ],
)
def test_what_was_renamed_is_one_line_that_tells_the_new_name(edits, expected):
    config = edited(*edits)
    if "images" in config:
        del config["image_folder"]
    assert problems(config) == [expected]


def test_an_option_of_a_single_search_that_was_renamed_is_told_too():
    with pytest.raises(UserError, match=r"^options\.kl: renamed to max_kl$"):
        complete_search({"method": "rate_distortion", "options": {"kl": 0.1}})


def test_new_names_are_keys_and_values_of_the_schema():
    assert set(RENAMED.values()) <= KEYS
    for path, values in RENAMED_VALUES.items():
        kind, _, key = path.split(".")
        assert set(values.values()) <= set(schema()["$defs"][kind.removesuffix("s")]["properties"][key]["enum"])


@pytest.mark.parametrize(
    ("kind", "key", "table", "rows"),
    [
        ("model", "source", "wshare.models.sources.table", "SOURCES"),
        ("dataset", "source", "wshare.data.datasets.table", "SOURCES"),
        ("model", "task", "wshare.tasks.table", "TASKS"),
        ("search", "method", "wshare.search.methods", "METHODS"),
    ],
)
def test_choices_of_the_schema_are_the_rows_of_the_table(kind, key, table, rows):
    found = getattr(pytest.importorskip(table), rows)
    named = set(schema()["$defs"][kind]["properties"][key]["enum"]) - {None}
    assert {row.name for row in found.values()} == set(found) == named


def test_each_method_of_the_schema_has_its_options():
    node = schema()["$defs"]["search"]
    options = {rule["if"]["properties"]["method"]["const"]: rule["then"] for rule in node["allOf"]}
    assert options.keys() == set(node["properties"]["method"]["enum"])
    for method, rule in options.items():
        assert rule == {"properties": {"options": {"$ref": f"#/$defs/{method}"}}}


@pytest.mark.parametrize(
    ("kind", "table"), [("model", networks.SOURCES), ("dataset", images.SOURCES)], ids=["model", "dataset"]
)
def test_keys_of_a_source_are_keys_of_the_schema_with_a_default(kind, table):
    known = schema()["$defs"][kind]["properties"]
    for source in table.values():
        assert all("default" in known[key] for key in source.keys), source.name
        assert set(source.required) <= set(source.keys), source.name
