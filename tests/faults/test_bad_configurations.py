# ruff: noqa: E501
# Messages are quoted as they are printed, one a line.
"""Wrong configurations: every problem at once, with its place and the next step."""

import copy
import resource

import pytest
import yaml

from wshare.config.validation import complete
from wshare.errors import UserError

from ..runs import command, run_to_end

BASE = """
datasets: {mnist: {source: mnist, split: {train: 100, search: 10, held_out: 10}}}
models: {lenet5: {source: train, architecture: lenet5, dataset: mnist}}
searches: {slope: {method: slope, confidence: null}}
"""
# What is set, and the lines that must be printed.
CASES = [
    ("datsets: {}", ["datsets: unknown key. Did you mean 'datasets'?"]),
    ("models.lenet5.architecure: lenet5", ["models.lenet5.architecure: unknown key. Did you mean 'architecture'?"]),
    ("models.lenet5.dataset: mnits", ["models.lenet5.dataset: 'mnits' is not in datasets. Did you mean 'mnist'?"]),
    ("models.lenet5.dataset: 3", ["models.lenet5.dataset: 3 is not of type 'string'"]),
    ("models.lenet5.searches: [slop]", ["models.lenet5.searches[0]: 'slop' is not in searches. Did you mean 'slope'?"]),
    (
        "models.lenet5.source: trian",
        [
            "models.lenet5.source: 'trian' is not one of train, torchvision, timm, efficientnet_lite, file, onnx, torch_export, python. Did you mean 'train'?"
        ],
    ),
    ("models.lenet5.sha256: abc", ["models.lenet5.sha256: 'abc' does not match '^[0-9a-f]{64}$'"]),
    ("models.lenet5.weights: DEFAULT", ["models.lenet5.weights: source 'train' does not read it; remove the key"]),
    ("models.lenet5.layers.include: conv1", ["models.lenet5.layers.include: 'conv1' is not of type 'array'"]),
    (
        "models.lenet5.layers.exclude: ['re:(']",
        [
            "models.lenet5.layers.exclude.'re:(': not a regular expression (missing ), unterminated subpattern at position 0)"
        ],
    ),
    (
        "models.lenet5.layers.overrides: {conv1: {kmax: 3}}",
        ["models.lenet5.layers.overrides.conv1.kmax: unknown key. Did you mean 'k_max'?"],
    ),
    (
        "models.lenet5.layers.overrides: {conv1: {bins: 16, k_max: 32}}",
        ["models.lenet5.layers.overrides.'conv1'.bins: 16 bins cannot hold k_max 32 shared values"],
    ),
    ("models.lenet5.training.epochs: 0", ["models.lenet5.training.epochs: 0 is less than the minimum of 1"]),
    ("models.lenet5.training.epochs: 3.0", ["models.lenet5.training.epochs: 3.0 is not of type 'integer'"]),
    ("models.lenet5.training.floor: 1.5", ["models.lenet5.training.floor: 1.5 is greater than the maximum of 1"]),
    (
        "models.a/b: {source: train, architecture: lenet5, dataset: mnist}",
        ["models.a/b: a name has letters, digits, '_', '-' and '.', and starts with one of the first two"],
    ),
    (
        "datasets.mnist.source: mnsit",
        [
            "datasets.mnist.source: 'mnsit' is not one of mnist, digits, fashion_mnist, cifar10, imagenet, imagenette, imagefolder, table, photos, python. Did you mean 'mnist'?"
        ],
    ),
    (
        "datasets.mnist.split: {search: 0.6, held_out: 0.6}",
        [
            "datasets.mnist.split.train: required, since models.lenet5 is trained on it",
            "datasets.mnist.split: the shares add up to 1.2, which is more than all images",
        ],
    ),
    (
        "datasets.mnist.calibration: {source: photos}",
        ["datasets.mnist.calibration: source 'photos' deals its crops itself; take another source, or leave it out"],
    ),
    (
        "datasets.mnist.calibration: {source: mnist}",
        ["datasets.mnist.calibration: names the search images; give a path, function or source of other images"],
    ),
    (
        "datasets.mnist.calibration: {source: imagefolder}",
        ["datasets.mnist.calibration.path: a folder of images is needed; set it here"],
    ),
    (
        "datasets.pictures: {source: imagefolder, path: p, class_map: sorted, split: {search: 1, held_out: 1}, calibration: {path: p}}",
        ["datasets.pictures.calibration: names the search images; give a path, function or source of other images"],
    ),
    ("datasets.mnist.split: {search: 10}", ["datasets.mnist.split.held_out: required, but missing"]),
    (
        "datasets.mnist.split.search: 2.5",
        ["datasets.mnist.split.search: 2.5 is neither a count of images nor a share below 1"],
    ),
    ("datasets.mnist.path: /data", ["datasets.mnist.path: source 'mnist' does not read it; remove the key"]),
    (
        "datasets.pictures: {source: imagefolder, split: {search: 1, held_out: 1}}",
        ["datasets.pictures.path: a folder of images is needed; set it here, or pass --config image_folder=<folder>"],
    ),
    (
        "searches.slope.method: slop",
        [
            "searches.slope.method: 'slop' is not one of rate_distortion, slope, milp, greedy, two_step, uniform. Did you mean 'slope'?"
        ],
    ),
    ("searches.slope.quality_target: 1.5", ["searches.slope.quality_target: 1.5 is greater than the maximum of 1"]),
    ("searches.slope.quality_target: high", ["searches.slope.quality_target: 'high' is not of type 'number'"]),
    ("searches.slope.confidence: 1", ["searches.slope.confidence: 1 is greater than or equal to the maximum of 1"]),
    ("searches.slope.options: {samples: 3}", ["searches.slope.options.samples: unknown key. Known: 'evaluations'."]),
    ("searches.slope.options.evaluations: 0", ["searches.slope.options.evaluations: 0 is less than the minimum of 1"]),
    ("clustering.candidates: []", ["clustering.candidates: [] should be non-empty"]),
    ("clustering.candidates: [2, 2]", ["clustering.candidates: [2, 2] has non-unique elements"]),
    ("clustering.k_max: 5000", ["clustering.k_max: 5000 is greater than the maximum of 4096"]),
    ("clustering.bins: 8", ["clustering.bins: 8 is less than the minimum of 16"]),
    (
        "clustering.method: exat",
        ["clustering.method: 'exat' is not one of exact, lloyd, sklearn. Did you mean 'exact'?"],
    ),
    ("packing.format: zip", ["packing.format: 'zip' is not one of fixed, entropy."]),
    ("sensitivity.layers_per_job: none", ["sensitivity.layers_per_job: 'none' is not of type 'integer'"]),
    ("seed: -1", ["seed: -1 is less than the minimum of 0"]),
    (
        "seed: .nan",
        ["seed: nan is neither text, a finite number, true, false nor null", "seed: nan is not of type 'integer'"],
    ),
]


def edited(*cases: str) -> dict:
    """The base with some keys set, each written as `path: value`."""
    config = copy.deepcopy(yaml.safe_load(BASE))
    for case in cases:
        path, _, value = case.partition(": ")
        *parents, last = path.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(value)
    return config


def problems(config: dict) -> list[str]:
    with pytest.raises(UserError) as error:
        complete(config)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


@pytest.mark.parametrize(("case", "expected"), CASES, ids=[case for case, _ in CASES])
def test_a_wrong_value_is_told_word_for_word(fault, case, expected):
    row = fault(10, "wrong configuration", data="refused before any job, all problems at once")
    assert problems(edited(case)) == expected
    row.round(True)


def test_problems_of_many_places_are_told_together(tmp_path, fault):
    """By the program too: in seconds, with exit code 1 and without a traceback."""
    row = fault(10, "wrong configuration under `snakemake -n`", data="refused in under 5 s, exit code 1, no traceback")
    # Not in one object: an entry that is wrong in itself is not compared with others.
    chosen = ("seed: -1", "datsets: {}", "clustering.bins: 8", "packing.format: zip", "models.lenet5.architecure: x")
    expected = [line for case, lines in CASES for line in lines if case in chosen]
    config = edited(*chosen)
    found = problems(config)
    assert found == sorted(found)
    assert set(expected) <= set(found)
    assert len(found) == len(chosen)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    # Seconds of processor time, so that other work on the machine does not count.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = run_to_end(command(tmp_path, "--dry-run"), alone=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert run.returncode == 1
    output = run.stdout + run.stderr
    assert "Traceback" not in output
    assert all(line in output for line in found)
    row.round(True)
