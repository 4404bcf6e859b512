import ast
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wshare.cli import STAGES
from wshare.config import code_hash
from wshare.config.code_hash import code_files
from wshare.config.slices import layer_settings, model_names, stage_settings, studies
from wshare.config.validation import PACKAGE, complete, schema
from wshare.errors import UserError

ROOT = PACKAGE.parents[1]
BASE = {
    "images": "images",
    "datasets": {
        "d": {"source": "digits", "split": {"train": 0.2, "search": 0.4, "held_out": 0.4}},
        "folder": {"source": "imagefolder", "split": {"search": 100, "held_out": 200}},
    },
    "models": {
        "m": {"source": "train", "architecture": "tiny", "dataset": "d"},
        "f": {"source": "torchvision", "architecture": "resnet18", "dataset": "folder"},
    },
    "searches": {
        "s": {"method": "slope"},
        "t": {"method": "two_step"},
        "u": {"method": "uniform"},
        "r": {"method": "rate_distortion"},
    },
}

PHOTOS = {"source": "photos", "split": {"search": 20, "held_out": 30}}


def edited(*edits: tuple[str, object]) -> dict:
    """The base configuration with values set at dotted paths; `/` stands for a dot within a key."""
    config = copy.deepcopy(BASE)
    for path, value in edits:
        *parts, last = (part.replace("/", ".") for part in path.split("."))
        node = config
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return config


def problems(config: dict) -> list[str]:
    with pytest.raises(UserError) as error:
        complete(config)
    first, *lines = str(error.value).splitlines()
    assert first == "the configuration has problems:"
    return [line.removeprefix("  ") for line in lines]


def names_of_properties(node: object) -> set[str]:
    """Names of all properties of a schema."""
    if isinstance(node, list):
        return set().union(*map(names_of_properties, node))
    if not isinstance(node, dict):
        return set()
    return set(node.get("properties", {})).union(*map(names_of_properties, node.values()))


KEYS = names_of_properties(schema())


def test_defaults_are_filled_at_every_level():
    config = complete(BASE)
    assert config["seed"] == 0
    assert config["clustering"] == {
        "method": "exact",
        "k_max": 256,
        "bins": 16384,
        "weighting": "none",
        "candidates": [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128],
    }
    assert config["sensitivity"].keys() == {"images", "layers_per_job"}
    assert config["packing"] == {"format": "fixed", "batch_norm": "auto"}
    assert config["inputs"] == {"images": 512}
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
    assert complete(config | {"images": "folder"})


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
        ("images", 3, "3 is not of type 'string', 'null'"),
        ("datasets.d", None, "None is not of type 'object'"),
        ("datasets.d.enlarge", "yes", "'yes' is not of type 'boolean'"),
        ("datasets.folder.on_bad_image", "skp", "'skp' is not one of stop, skip. Did you mean 'skip'?"),
        ("datasets.d.split.search", 0, "0 is less than or equal to the minimum of 0"),
        ("models.m.classes", 1, "1 is less than the minimum of 2"),
        ("models.m.preprocessing.channels", 2, "2 is not one of 1, 3."),
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
        ("searches.u.options.samples", "searches.u.options.samples: unknown key."),
        ("zzz", "zzz: unknown key."),
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
        ([("images", None)], "datasets.folder.path: a folder of images is needed"),
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
            [("searches.r.options", {"compression_rate": 8, "kl": 0.1})],
            "searches.r.options.kl: not read with compression_rate; remove one of the two keys",
        ),
        ([("datasets.d.on_bad_image", "skip")], "datasets.d.on_bad_image: source 'digits' does not read it; remove"),
        ([("datasets.p", PHOTOS | {"enlarge": False})], "datasets.p.enlarge: source 'photos' does not read it"),
        (
            [("datasets.p", PHOTOS | {"split": {"search": 0.5, "held_out": 9}})],
            "datasets.p.split.search: 0.5 is a share, and crops have no total; give a count",
        ),
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
        "1: unknown key.",
        "False: unknown key.",
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


def test_the_code_reads_every_key_of_the_schema():
    assert KEYS - strings_of_the_code() == set()


def test_an_exact_name_wins_over_the_first_pattern_over_the_default():
    overrides = {
        "re:conv.*": {"k_max": 8, "bins": 64},
        "re:.*1": {"k_max": 9, "weighting": "importance"},
        "conv2": {"k_max": 10},
    }
    config = complete(edited(("clustering.k_max", 100), ("models.m.layers.overrides", overrides)))
    default = config["clustering"]
    assert layer_settings(config, "m", "fc") == default
    assert layer_settings(config, "m", "fc1") == default | {"k_max": 9, "weighting": "importance"}
    assert layer_settings(config, "m", "conv1") == default | {"k_max": 8, "bins": 64}
    assert layer_settings(config, "m", "conv2") == default | {"k_max": 10, "bins": 64}
    assert layer_settings(config, "m", "xconv") == default
    assert layer_settings(config, "f", "conv2") == default


def texts(config: dict, model: str) -> dict[str, str]:
    """Settings of all stages of a model, for layer `conv` and search `s`, or `r` by rate_distortion."""
    items = {"cluster_layer": "conv", "search_rate_distortion": "r"}
    return {stage: stage_settings(config, stage, model, items.get(stage, "s")) for stage in STAGES}


SEEDED = {
    "train_model",
    "prepare_images",
    "extract_weights",
    "cluster_layer",
    "measure_inputs",
    "search",
    "search_rate_distortion",
    "evaluate_packed",
}
DATA = {"train_model", "prepare_images"}
# What changes for model `m`, layer `conv` and search `s` when one key changes.
CHANGES = [
    ("seed", 1, SEEDED),
    ("images", "elsewhere", set()),
    ("datasets.d.source", "mnist", DATA),
    ("datasets.d", {"source": "python", "function": "a:b", "split": BASE["datasets"]["d"]["split"]}, DATA),
    ("datasets.d.enlarge", False, DATA),
    ("datasets.d.split.train", 0.1, DATA),
    ("datasets.d.split.search", 0.3, DATA),
    ("datasets.d.split.held_out", 0.3, {"prepare_images"}),
    ("datasets.folder.path", "there", set()),
    ("models.m.architecture", "lenet5", {"fetch_model", "train_model"}),
    ("models.m.dataset", "e", DATA),
    ("models.m.arguments", {"width": 2}, {"fetch_model", "train_model"}),
    ("models.m.preprocessing.mean", [0.1], {"fetch_model", "train_model"}),
    ("models.m.training.epochs", 1, {"train_model"}),
    ("models.m.training.learning_rate", 1, {"train_model"}),
    ("models.m.training.batch_size", 1, {"train_model"}),
    ("models.m.training.shift", 1, {"train_model"}),
    ("models.m.training.floor", 1, {"train_model"}),
    ("models.m.layers.include", ["conv"], {"inspect_model", "extract_weights"}),
    ("models.m.layers.exclude", ["fc"], {"inspect_model", "extract_weights"}),
    ("models.m.layers.overrides", {"conv": {"bins": 512}}, {"cluster_layer"}),
    ("models.m.layers.overrides", {"re:c.*": {"k_max": 32}}, {"cluster_layer"}),
    ("models.m.layers.overrides", {"fc": {"bins": 512}, "re:f.*": {"k_max": 3}}, set()),
    ("models.m.searches", ["s"], set()),
    ("models.f.architecture", "resnet34", set()),
    ("models.g", {"source": "train", "architecture": "tiny", "dataset": "d"}, set()),
    ("clustering.method", "lloyd", {"cluster_layer"}),
    ("clustering.k_max", 9, {"cluster_layer"}),
    ("clustering.bins", 999, {"cluster_layer"}),
    ("clustering.weighting", "importance", {"cluster_layer"}),
    ("clustering.candidates", [2], {"cluster_layer"}),
    ("importance.images", 3, {"extract_weights"}),
    ("sensitivity.images", 3, {"profile_layers"}),
    ("sensitivity.layers_per_job", 3, set()),
    ("searches.s.method", "uniform", {"search"}),
    ("searches.s.quality_target", 0.5, {"search", "evaluate_packed"}),
    ("searches.s.confidence", 0.5, {"search"}),
    ("searches.s.options.evaluations", 3, {"search"}),
    ("searches.t.quality_target", 0.5, set()),
    ("searches.t.options.samples", 3, set()),
    ("searches.v", {"method": "slope"}, set()),
    ("searches.r.quality_target", 0.5, {"search_rate_distortion"}),
    ("searches.r.confidence", 0.5, {"search_rate_distortion"}),
    ("searches.r.options.format", "fixed", {"search_rate_distortion"}),
    ("searches.r.options.kl", 0.1, {"search_rate_distortion"}),
    ("searches.r.options.evaluations", 3, {"search_rate_distortion"}),
    ("searches.r.options.probe_images", 0, {"search_rate_distortion"}),
    ("searches.r.options.error_feedback", False, {"search_rate_distortion"}),
    ("searches.r.options.bias_correction", False, {"search_rate_distortion"}),
    ("searches.r.options.least_squares", False, {"search_rate_distortion"}),
    ("searches.r.options.assignment_descent", False, {"search_rate_distortion"}),
    ("searches.r.options.variance_matching", False, {"search_rate_distortion"}),
    ("searches.r.options.compression_rate", 8, {"search_rate_distortion"}),
    ("searches.r.options.fold_batch_norm", False, {"search_rate_distortion"}),
    ("inputs.images", 3, {"measure_inputs"}),
    ("packing.format", "entropy", {"pack_model"}),
    ("packing.batch_norm", "float16", {"pack_model", "pack_rate_distortion"}),
]


@pytest.mark.parametrize(("path", "value", "expected"), CHANGES, ids=[f"{path}={value}" for path, value, _ in CHANGES])
def test_a_key_changes_the_settings_of_the_stages_that_depend_on_it_alone(path, value, expected):
    spare = ("datasets.e", {"source": "digits", "split": {"train": 5, "search": 5, "held_out": 5}})
    before, after = complete(edited(spare)), complete(edited(spare, (path, value)))
    assert before != after
    old, new = texts(before, "m"), texts(after, "m")
    changed = {stage for stage in STAGES if old[stage] != new[stage]}
    # Models that are trained are not fetched.
    assert changed - {"fetch_model", "report_model"} == expected - {"fetch_model"}
    # The report prints the configuration that its results came from.
    assert not expected or "report_model" in changed


FETCHED = [
    ("images", "elsewhere", {"prepare_images"}),
    ("datasets.folder.path", "there", {"prepare_images"}),
    ("datasets.folder.class_map", "sorted", {"prepare_images"}),
    ("datasets.folder.labels", False, {"prepare_images"}),
    ("datasets.folder.on_bad_image", "skip", {"prepare_images"}),
    ("models.f.source", "timm", {"fetch_model"}),
    ("models.f.weights", "V2", {"fetch_model"}),
    ("models.f.path", "file", {"fetch_model"}),
    ("models.f.sha256", "0" * 64, {"fetch_model"}),
    ("models.f.url", "https://a/b", {"fetch_model"}),
    ("models.f.classes", 7, {"fetch_model"}),
    ("models.f.arguments", {"x": 1}, {"fetch_model"}),
    ("models.f.preprocessing.resize", 7, {"fetch_model"}),
    ("models.m.architecture", "lenet5", set()),
    ("seed", 1, SEEDED - {"train_model"}),
]


@pytest.mark.parametrize(("path", "value", "expected"), FETCHED, ids=[path for path, *_ in FETCHED])
def test_a_key_of_a_fetched_model_changes_the_stages_that_depend_on_it_alone(path, value, expected):
    old, new = (texts(complete(edited(*edits)), "f") for edits in ([], [(path, value)]))
    changed = {stage for stage in STAGES if old[stage] != new[stage]}
    assert changed - {"train_model", "report_model"} == expected
    assert not expected or "report_model" in changed


def test_the_tables_above_edit_every_key():
    paths = {part for path, value, _ in CHANGES + FETCHED for part in path.split(".")}
    covered = paths | {
        "function",
        "channels",
        "crop",
        "interpolation",
        "std",
        "max_bits",
        "population",
        "generations",
        "rescored",
    }
    assert KEYS - covered == set()


def test_the_order_of_keys_does_not_matter():
    def turned(node: object) -> object:
        return {key: turned(node[key]) for key in reversed(node)} if isinstance(node, dict) else node

    config = edited(("models.m.layers.overrides", {"conv": {"bins": 32, "k_max": 3}}), ("searches.s.confidence", 0.5))
    assert texts(complete(turned(config)), "m") == texts(complete(config), "m")
    assert all(
        text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        for text in texts(complete(config), "m").values()
    )


def test_a_model_runs_all_searches_or_those_it_names():
    config = complete(edited(("models.m.searches", ["u", "s"])))
    assert studies(config) == [("m", "s"), ("m", "u"), ("f", "s"), ("f", "t"), ("f", "u"), ("f", "r")]
    assert problems(edited(("models.m.searches", []))) == ["models.m.searches: [] should be non-empty"]


def test_models_are_trained_or_fetched():
    config = complete(BASE)
    assert (model_names(config, trained=True), model_names(config, trained=False)) == (["m"], ["f"])


def modules(stage: str, method: str | None = None) -> set[str]:
    files = code_files(stage, method=method)
    return {Path(file).relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for file in files}


def test_code_files_of_a_light_stage_are_exactly_these():
    assert modules("gather_sensitivity") == {"stages.gather_sensitivity", "errors", "storage", "tables"}
    assert modules("cluster_layer") == {
        "stages.cluster_layer",
        "clusters",
        "codebooks",
        "errors",
        "kmeans",
        "names",
        "storage",
        "weightfile",
    }


def test_code_files_of_search_hold_the_method_alone():
    found = modules("search", "slope")
    assert {"search.__init__", "search.slope", "search.problem"} <= found
    assert {"codebooks", "sensitivity", "scoring", "journal", "cost", "stages.search"} <= found
    assert not {"search.two_step", "search.uniform", "packing", "training", "stages.pack_model"} & found
    # The program of milp starts from the path of greedy.
    assert {"search.milp", "search.greedy"} <= modules("search", "milp")


def test_code_files_of_the_search_by_price_hold_nothing_of_the_file_format():
    found = modules("search_rate_distortion", "rate_distortion")
    assert {"search.rate_distortion", "feedback", "kmeans"} <= found
    assert not {"search.slope", "packing", "entropy"} & found


def test_code_files_of_a_model_hold_no_statistics():
    assert not {"scoring", "images"} & (modules("fetch_model") | modules("inspect_model"))


def test_code_hash_follows_names_and_contents_alone(monkeypatch, tmp_path):
    files = [tmp_path / name for name in ("a.py", "b.py")]
    hashes = set()
    for contents in (("x", "y"), ("xy", ""), ("x", "y"), ("y", "x")):
        for file, content in zip(files, contents, strict=True):
            file.write_text(content)
        monkeypatch.setattr(code_hash, "PACKAGE", tmp_path)
        monkeypatch.setattr(code_hash, "code_files", lambda *_: tuple(map(str, files)))
        code_hash.code_hash.cache_clear()
        hashes.add(code_hash.code_hash("search"))
    code_hash.code_hash.cache_clear()
    assert len(hashes) == 3


def test_code_files_hold_every_module_that_a_stage_imports():
    """Imports that a running Python sees, against those read from the source; only doors for users may be missing."""
    program = """if True:
        import json, os, sys
        import h5py, numba, numpy, scipy.stats, torch, torchvision, tqdm
        seen = {}
        for stage in json.loads(sys.argv[1]):
            read, write = os.pipe()
            if os.fork() == 0:
                __import__(f"wshare.stages.{stage}")
                files = [module.__file__ for name, module in sys.modules.items() if name.startswith("wshare.")]
                os.write(write, json.dumps(files).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                seen[stage] = json.loads(pipe.read())
            os.wait()
        print(json.dumps(seen))
    """
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    arguments = [sys.executable, "-c", program, json.dumps(STAGES)]
    run = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
    for stage, files in json.loads(run.stdout).items():
        assert {file for file in files if file != str(PACKAGE / "stages" / "__init__.py")} <= set(code_files(stage)), (
            stage
        )


def test_light_stages_and_the_settings_import_no_torch():
    names = ["wshare.stages.cluster_layer", "wshare.stages.gather_sensitivity", "wshare.stages.summarise"]
    names += ["wshare.stages.report_model", "wshare.stages.report_study"]
    names += ["wshare.config.slices", "wshare.config.validation", "wshare.cli", "wshare.config.environment"]
    program = f"import {', '.join(names)}, sys; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_rules_import_no_torch():
    for file in [*PACKAGE.parent.rglob("*.smk"), PACKAGE.parent / "Snakefile"]:
        assert not re.search(r"^\s*(import|from) (torch|numpy|h5py)", file.read_text(encoding="utf-8"), re.MULTILINE)
