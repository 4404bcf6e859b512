"""What of the configuration each stage depends on."""

import json

import pytest

from tests.rules import settings_of_stage
from tests.unit.config.base import BASE, KEYS, edited, problems
from wshare.cli import STAGES
from wshare.config.slices import calibration_source, image_source, layer_overrides, model_names, slice_of, studies
from wshare.config.validation import complete


def test_an_exact_name_wins_over_the_first_pattern_over_the_default():
    overrides = {
        "re:conv.*": {"k_max": 8, "bins": 64},
        "re:.*1": {"k_max": 9, "weighting": "importance"},
        "conv2": {"k_max": 10},
    }
    config = complete(edited(("clustering.k_max", 100), ("models.m.layers.overrides", overrides)))

    def own(model: str, layer: str) -> dict:
        return layer_overrides(config, {"model": model, "layer": layer})

    assert own("m", "fc") == {}
    assert own("m", "fc1") == {"k_max": 9, "weighting": "importance"}
    assert own("m", "conv1") == {"k_max": 8, "bins": 64}
    assert own("m", "conv2") == {"k_max": 10, "bins": 64}
    assert own("m", "xconv") == {}
    assert own("f", "conv2") == {}


def test_a_slice_holds_what_its_parts_name():
    config = complete(edited())
    names = {"model": "m", "search": "s"}
    assert slice_of(config, names, "seed", "importance.*") == {"seed": 0} | config["importance"]
    assert slice_of(config, names, "models.{model}.architecture") == {"architecture": "tiny"}
    dataset = config["datasets"]["d"]
    found = slice_of(config, names, data=["datasets.{dataset}.*", "!split.held_out"])
    rest = {key: size for key, size in dataset["split"].items() if key != "held_out"}
    assert found == {"data": dataset | {"split": rest}}
    # The configuration itself stays whole.
    assert "held_out" in dataset["split"]
    with pytest.raises(KeyError):
        slice_of(config, names, "models.{model}.nothing")


def test_names_in_the_configuration_may_hold_dots():
    config = {"models": {"a.b": {"dataset": "c.d", "task": 1}}, "datasets": {"c.d": {"source": 2}}}
    assert slice_of(config, {"model": "a.b"}, "models.{model}.task", "datasets.{dataset}.source") == {
        "task": 1,
        "source": 2,
    }


def test_of_images_from_two_sources_the_code_of_all_sources_counts():
    own = {"source": "imagefolder", "path": "there"}
    for edits, source in (
        ([], "digits"),
        ([("datasets.d.held_out", {"source": "digits", "path": None})], "digits"),
        ([("datasets.d.held_out", own)], None),
        # Images for calibration have a rule of their own.
        ([("datasets.d.calibration", {"source": "mnist"})], "digits"),
    ):
        assert image_source(edited(*edits)["datasets"]["d"]) == source


def test_source_of_images_for_calibration():
    assert calibration_source(BASE["datasets"]["d"]) is None
    for own, source in (({"source": "mnist"}, "mnist"), ({"path": "there"}, "digits")):
        assert calibration_source(edited(("datasets.d.calibration", own))["datasets"]["d"]) == source


def texts(config: dict, model: str) -> dict[str, str]:
    """Settings of all stages of a model, for layer `conv` and search `s`; `search r` are those of another search."""
    items = {"cluster_layer": "conv"}
    found = {stage: settings_of_stage(config, stage, model, items.get(stage, "s")) for stage in STAGES}
    return found | {"search r": settings_of_stage(config, "search", model, "r")}


SEEDED = {
    "train_model",
    "prepare_images",
    "prepare_calibration",
    "extract_weights",
    "cluster_layer",
    "measure_inputs",
    "search",
    "search r",
    "evaluate_packed",
}


IMAGES = {"prepare_images", "prepare_calibration"}
DATA = {"train_model", *IMAGES}


# What changes for model `m`, layer `conv` and search `s` when one key changes.
CHANGES = [
    ("seed", 1, SEEDED),
    ("image_folder", "elsewhere", set()),
    ("datasets.d.source", "mnist", DATA),
    ("datasets.d", {"source": "python", "function": "a:b", "split": BASE["datasets"]["d"]["split"]}, DATA),
    ("datasets.d.enlarge", False, DATA),
    ("datasets.d.split.train", 0.1, DATA - {"prepare_calibration"}),
    ("datasets.d.split.search", 0.3, DATA - {"prepare_calibration"}),
    ("datasets.d.split.held_out", 0.3, {"prepare_images"}),
    ("datasets.d.held_out", {"source": "mnist"}, {"prepare_images"}),
    ("datasets.d.calibration", {"source": "mnist"}, {"prepare_calibration"}),
    ("datasets.folder.path", "there", set()),
    ("models.m.architecture", "lenet5", {"fetch_model", "train_model"}),
    ("models.m.dataset", "e", DATA - {"prepare_calibration"}),
    ("models.m.arguments", {"width": 2}, {"fetch_model", "train_model"}),
    ("models.m.preprocessing.mean", [0.1], {"fetch_model", "train_model"}),
    ("models.m.training.epochs", 1, {"train_model"}),
    ("models.m.training.learning_rate", 1, {"train_model"}),
    ("models.m.training.batch_size", 1, {"train_model"}),
    ("models.m.training.shift", 1, {"train_model"}),
    ("models.m.training.floor", 1, {"train_model"}),
    ("models.m.layers.include", ["conv"], {"inspect_model"}),
    ("models.m.layers.exclude", ["fc"], {"inspect_model"}),
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
    ("clustering.keep_zeros", True, {"cluster_layer"}),
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
    ("searches.r.quality_target", 0.5, {"search r"}),
    ("searches.r.confidence", 0.5, {"search r"}),
    ("searches.r.options.format", "fixed", {"search r"}),
    ("searches.r.options.max_kl", 0.1, {"search r"}),
    ("searches.r.options.evaluations", 3, {"search r"}),
    ("searches.r.options.probe_images", 0, {"search r"}),
    ("searches.r.options.error_feedback", False, {"search r"}),
    ("searches.r.options.bias_correction", False, {"search r"}),
    ("searches.r.options.least_squares", False, {"search r"}),
    ("searches.r.options.assignment_descent", False, {"search r"}),
    ("searches.r.options.variance_matching", False, {"search r"}),
    ("searches.r.options.output_scale", False, {"search r"}),
    ("searches.r.options.compression_rate", 8, {"search r"}),
    ("searches.r.options.fold_batch_norm", False, {"search r"}),
    ("searches.r.options.keep_zeros", True, {"search r"}),
    ("searches.r.options.gradient_calibration", True, {"search r"}),
    ("calibration.images", 3, {"measure_inputs"}),
    ("packing.format", "entropy", {"search"}),
    ("packing.batch_norm", "float16", {"search", "search r"}),
]


@pytest.mark.parametrize(("path", "value", "expected"), CHANGES, ids=[f"{path}={value}" for path, value, _ in CHANGES])
def test_a_key_changes_the_settings_of_the_stages_that_depend_on_it_alone(path, value, expected):
    spare = ("datasets.e", {"source": "digits", "split": {"train": 5, "search": 900, "held_out": 850}})
    before, after = complete(edited(spare)), complete(edited(spare, (path, value)))
    assert before != after
    old, new = texts(before, "m"), texts(after, "m")
    changed = {stage for stage in old if old[stage] != new[stage]}
    # Models that are trained are not fetched.
    assert changed - {"fetch_model", "report_model"} == expected - {"fetch_model"}
    # The report prints the configuration that its results came from.
    assert not expected or "report_model" in changed


FETCHED = [
    ("image_folder", "elsewhere", IMAGES),
    ("datasets.folder.path", "there", IMAGES),
    ("datasets.folder.class_map", "sorted", {"prepare_images"}),
    ("datasets.folder.labels", False, {"prepare_images"}),
    ("datasets.folder.on_bad_image", "skip", IMAGES),
    ("models.f.source", "timm", {"fetch_model"}),
    ("models.f.weights", "V2", {"fetch_model"}),
    ("models.f.path", "file", {"fetch_model"}),
    ("models.f.sha256", "0" * 64, {"fetch_model"}),
    ("models.f.url", "https://a/b", {"fetch_model"}),
    ("models.f.quality", "python:a:b", {"fetch_model"}),
    ("models.f.task", "regression", {"fetch_model"}),
    ("models.f.classes", 7, {"fetch_model"}),
    ("models.f.arguments", {"x": 1}, {"fetch_model"}),
    ("models.f.preprocessing.resize", 7, {"fetch_model"}),
    ("models.m.architecture", "lenet5", set()),
    ("seed", 1, SEEDED - {"train_model"}),
]


@pytest.mark.parametrize(("path", "value", "expected"), FETCHED, ids=[path for path, *_ in FETCHED])
def test_a_key_of_a_fetched_model_changes_the_stages_that_depend_on_it_alone(path, value, expected):
    old, new = (texts(complete(edited(*edits)), "f") for edits in ([], [(path, value)]))
    changed = {stage for stage in old if old[stage] != new[stage]}
    assert changed - {"train_model", "report_model"} == expected
    assert not expected or "report_model" in changed


def test_the_tables_above_edit_every_key():
    paths = {part for path, value, _ in CHANGES + FETCHED for part in path.split(".")}
    covered = paths | {
        "function",
        "key",
        "channels",
        "crop",
        "interpolation",
        "letterbox",
        "order",
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
