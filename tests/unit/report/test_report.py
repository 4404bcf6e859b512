"""The reports: whole HTML that needs no network, and says what the files say."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import numpy as np
import pytest
import yaml
from PIL import Image

from wshare.config.plan import plan
from wshare.config.validation import complete
from wshare.files.atomic import write_text
from wshare.files.sealed import read_json, write_json
from wshare.files.tables import read_sealed, write_sealed
from wshare.packed.format import read_layout, read_shared, write_packed
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import Shared
from wshare.report.charts import front
from wshare.report.codings import entropy_bytes, fixed_bytes, zipped_bytes
from wshare.report.histograms import histogram
from wshare.report.results import read_model_results
from wshare.report.texts import counted, duration, memory, percent, recipe, size
from wshare.stages.report_model import program, report_model

from ...rules import settings_of_stage
from ...runs import made_once
from .made_up import LAYERS, LOSSES, METHODS, MODEL, report_files, write_reports, write_results

# The reports that these tests read take ten seconds to write.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
VOID = {"meta", "br", "img", "link", "input", "hr"}
SECTIONS = [
    "Quality against size",
    "Layers",
    "Sensitivity of each layer",
    "Bits of each layer",
    "Weights and shared values",
    "Where the bytes went",
    "Predicted against measured loss",
    "Search trace",
    "Held-out confirmation",
    "Time and memory",
    "Reproduce it",
    "Honest limits",
]


class Page(HTMLParser):
    """A page's elements as (tag, attributes, text, ancestors), and what is wrong with their nesting."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.problems: list[str] = []
        self.elements: list[list] = []
        self._open: list[int] = []
        self.feed(self.source)
        self.close()
        self.problems += [f"<{self.elements[i][0]}> never closed" for i in self._open]

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if len(names) != len(set(names)):
            self.problems.append(f"<{tag}> has an attribute twice")
        self.elements.append([tag, dict(attributes), "", tuple(self._open)])
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        if not self._open or self.elements[self._open[-1]][0] != tag:
            self.problems.append(f"</{tag}> closes nothing")
        else:
            self._open.pop()

    def handle_data(self, data):
        for i in self._open:
            self.elements[i][2] += data

    def find(self, tag: str, **attributes: str) -> list[list]:
        """Elements with a tag and these attributes; `data_x` stands for `data-x`, `css` for `class`."""
        wanted = {{"css": "class"}.get(key, key.replace("_", "-")): value for key, value in attributes.items()}
        return [e for e in self.elements if e[0] == tag and all(e[1].get(k) == v for k, v in wanted.items())]

    def inside(self, outer: list, tag: str) -> list[list]:
        """Elements with a tag inside another element."""
        place = next(i for i, element in enumerate(self.elements) if element is outer)
        return [e for e in self.elements if e[0] == tag and place in e[3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up results and their reports, with figures, which take long."""

    def make(folder: Path) -> None:
        write_results(folder)
        write_reports(folder, drawn=True)

    return made_once(tmp_path_factory, "reports", make)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "results" / MODEL / "report" / "index.html")


@pytest.fixture(scope="module")
def study(folder: Path) -> Page:
    return Page(folder / "results" / "report" / "index.html")


@pytest.fixture(scope="module")
def metrics(folder: Path) -> dict[str, dict]:
    return {name: read_json(folder / "results" / MODEL / "search" / name / "metrics.json") for name in METHODS}


@pytest.mark.parametrize("name", ["page", "study"])
def test_page_is_whole_html(name, request):
    found = request.getfixturevalue(name)
    assert found.source.startswith("<!doctype html>")
    assert found.problems == []
    ids = [element[1]["id"] for element in found.elements if "id" in element[1]]
    assert len(ids) == len(set(ids))
    assert [element[2] for element in found.find("title")]
    assert len(found.find("h1")) == 1


@pytest.mark.parametrize("name", ["page", "study"])
def test_page_loads_nothing_and_is_small(name, request):
    found = request.getfixturevalue(name)
    assert len(found.source.encode()) < 5_000_000
    sources = [
        e[1][key] for e in found.elements for key in ("src", "href", "srcset", "action", "poster") if key in e[1]
    ]
    assert all(re.match(r"(data:image/(png|jpeg);base64,|#|\.\./)", source) for source in sources), sources
    assert not found.find("link") + found.find("iframe") + found.find("object")
    style = "".join(element[2] for element in found.find("style"))
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = found.find("meta", http_equiv="Content-Security-Policy")
    assert "default-src 'none'" in policy[1]["content"]
    # The Vega library, once.
    assert found.source.count("window.vegaEmbed=") == 1


def test_page_carries_the_metrics_word_for_word(page, metrics):
    data = json.loads(page.find("script", id="data")[0][2])
    assert data["metrics"] == metrics


@pytest.mark.parametrize("search", METHODS)
def test_card_says_what_metrics_say(page, metrics, search):
    (card,) = page.find("section", data_search=search)
    found, text = metrics[search], card[2]
    nbytes, rate = found["bytes"], found["compression_rate"]
    assert f"{size(nbytes['float32'])} → {size(nbytes['packed'])}" in text
    assert f"{rate['on_disk']:.2f}x on disk ({rate['analytic']:.2f}x analytic)" in text
    pairs = dict(zip(*([e[2] for e in page.inside(card, tag)] for tag in ("dt", "dd")), strict=True))
    low, high = found["relative_quality_ci95"]
    float16 = nbytes["float32"] / 2
    assert pairs["top-1"] == f"{percent(found['float32']['top1'])} → {percent(found['compressed']['top1'])}"
    assert pairs["share of float32"] == percent(found["relative_quality"])
    assert pairs["95 % interval"] == f"{percent(low)} to {percent(high)}"
    assert pairs["quality target"] == "90.00 %"
    assert pairs["bits a weight"] == f"{found['bits_per_weight']:.2f}"
    assert pairs["float32 file"] == f"{nbytes['float32']:,} B"
    assert pairs["half of it (float16)"] == f"{float16:,.0f} B, {float16 / nbytes['packed']:.2f}x"
    assert pairs["packed file"] == f"{nbytes['packed']:,} B"
    (badge,) = [e for e in page.inside(card, "span") if "verdict" in e[1].get("class", "")]
    assert badge[1]["class"] == f"verdict {found['verdict']}"
    assert found["verdict"] in badge[2]


@pytest.mark.parametrize("search", METHODS)
def test_every_search_has_every_section_in_order(page, search):
    (article,) = page.find("article", data_search=search)
    assert [heading[2] for heading in page.inside(article, "h2")] == SECTIONS
    drawn = {e[1]["data-chart"].partition("/")[2] for e in page.inside(article, "div") if "data-chart" in e[1]}
    always = {"front", "sensitivity", "bits", "bytes", "trace", "time", "memory", "weights_1", "weights_2"}
    assert drawn - {"weights_3"} == always | ({"losses"} if search == "rate_distortion" else set())
    sentence = "This search measured no layer alone, so there is no prediction to check."
    assert (sentence in article[2]) == (search != "rate_distortion")


def test_every_chart_has_data_and_a_text_alternative(page):
    specs = json.loads(page.find("script", id="charts")[0][2])["specs"]
    places = [e for e in page.find("div") if "data-chart" in e[1]]
    assert sorted(e[1]["data-chart"] for e in places) == sorted(specs)
    for _, attributes, _, _ in places:
        assert attributes["role"] == "img"
        assert re.search(r"\d", attributes["aria-label"])
        spec = specs[attributes["data-chart"]]
        assert all(rows for rows in spec["datasets"].values()) if "datasets" in spec else spec
        assert "http" not in json.dumps(spec)


def test_charts_are_vega_lite(page, study):
    specs = [
        spec
        for found in (page, study)
        for spec in json.loads(found.find("script", id="charts")[0][2])["specs"].values()
    ]
    assert specs
    for spec in specs:
        alt.Root.validate(spec)


@pytest.mark.parametrize("search", METHODS)
def test_front_shows_every_combination_and_the_choice(page, metrics, search):
    spec = json.loads(page.find("script", id="charts")[0][2])["specs"][f"{search}/front"]
    points = max((layer["data"]["values"] for layer in spec["layer"]), key=len)
    kinds = [point["kind"] for point in points if point["search"] == search]
    assert len(kinds) == 4 + 1
    assert kinds.count("chosen (analytic, search images)") == 1
    (packed,) = [point for point in points if point["kind"].startswith("packed file")]
    assert packed["kB"] == metrics[search]["bytes"]["packed"] / 1000
    assert packed["share"] == pytest.approx(metrics[search]["relative_quality"], rel=1e-4)
    uniform = [point for point in points if "uniform" in point["kind"]]
    assert len(uniform) == (0 if search == "uniform" else 4)
    assert len(points) == 4 * len(METHODS) + 1


@pytest.mark.parametrize("search", METHODS)
def test_layer_table_adds_up_to_the_packed_file(page, folder, metrics, search):
    (table,) = page.find("table", id=f"layers-{search}")
    cells = [e[1]["data-value"] for e in page.inside(table, "td")]
    rows = [cells[i : i + 10] for i in range(0, len(cells), 10)]
    assert [row[0] for row in rows] == list(LAYERS)
    assert [row[4] for row in rows] == (["8"] * 3 if search == "uniform" else ["16", "8", "4"])
    layout = read_layout(folder / "results" / MODEL / "search" / search / "packed.safetensors")
    assert [int(row[6]) for row in rows] == [layout.nbytes[f"{name}.weight"] for name in LAYERS]
    for name, row in zip(LAYERS, rows, strict=True):
        assert float(row[5]) == pytest.approx(8 * int(row[6]) / np.prod(LAYERS[name]), abs=1e-3)
    for head in page.inside(table, "th"):
        assert head[1]["aria-sort"] == "none"
    assert len(page.inside(table, "button")) == 10


def test_names_are_escaped(page):
    assert "stem.<conv>" not in page.source
    assert "stem.&lt;conv&gt;" in page.source


def test_images_whose_prediction_changed_are_shown(page, folder, metrics):
    search = max(METHODS, key=lambda name: -metrics[name]["compressed"]["agreement"])
    predictions, _ = read_sealed(folder / "results" / MODEL / "search" / search / "predictions.csv")
    rows = [row for row in predictions if row["float32"] != row["compressed"]]
    (article,) = page.find("article", data_search=search)
    images = page.inside(article, "img")
    assert len(images) == min(8, len(rows)) > 0
    assert [e[1]["alt"] for e in images] == [f"Held-out image {row['image']}" for row in rows[:8]]
    assert f"The top-1 prediction changed for {len(rows)} of 60 held-out images" in article[2]


def test_names_of_the_networks_classes_are_shown(page, folder, tmp_path):
    shutil.copytree(folder / "results", tmp_path / "results")
    root = tmp_path / "results" / MODEL
    # The roughest of the made-up searches.
    predictions, _ = read_sealed(root / "search" / "uniform" / "predictions.csv")
    row = next(row for row in predictions if row["float32"] != row["compressed"])
    spec = root / "model" / "model.json"
    (article,) = page.find("article", data_search="uniform")
    old = article[2]
    assert "Classes are indices." in old
    assert f"float32: {row['float32']}compressed: {row['compressed']}" in old
    content = {key: value for key, value in read_json(spec).items() if key != "checksum"}
    write_json(spec, content | {"categories": [f"kind <{index}>" for index in range(10)]})
    write_reports(tmp_path)
    (article,) = Page(root / "report" / "index.html").find("article", data_search="uniform")
    new = article[2]
    assert "Classes are indices." not in new
    before, after = (f"kind <{row[column]}> ({row[column]})" for column in ("float32", "compressed"))
    assert f"float32: {before}compressed: {after}" in new


def test_a_target_below_all_points_lies_on_the_scale(tmp_path):
    root = write_results(tmp_path, ("rate_distortion",))
    model = read_model_results(MODEL, report_files(root))
    (search,) = model.searches
    found = front(model, replace(search, metrics=search.metrics | {"quality_target": 0.8}))
    assert min(float(row["relative_quality"]) for row in search.front) > 0.85
    low, high = found.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < 0.8 < high


@pytest.mark.parametrize("search", METHODS)
def test_trace_is_in_the_order_of_measurement(page, search):
    spec = json.loads(page.find("script", id="charts")[0][2])["specs"][f"{search}/trace"]
    values = spec["layer"][0].get("data", spec.get("data"))["values"]
    assert [value["number"] for value in values] == [1, 2, 3, 4]
    sizes = [value["kB"] for value in values]
    # The smallest first, then from the largest downwards.
    assert sizes[0] == min(sizes)
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    assert [value["state"] for value in values][3] == "chosen"


def test_sections_without_data_say_so(tmp_path):
    root = write_results(tmp_path, ("rate_distortion",))
    search = root / "search" / "rate_distortion"
    write_sealed(search / "losses.csv", LOSSES, [], read_sealed(search / "losses.csv")[1])
    write_reports(tmp_path)
    found = Page(root / "report" / "index.html")
    text = found.find("article")[0][2]
    assert [heading[2] for heading in found.find("h2")][1:] == SECTIONS
    assert "This search measured no layer alone, and no other search profiled the layers." in text
    names = {e[1]["data-chart"] for e in found.find("div") if "data-chart" in e[1]}
    assert not names & {f"rate_distortion/{chart}" for chart in ("sensitivity", "losses")}
    # One search needs no choice between searches.
    assert not found.find("select")


def test_without_labels_the_page_says_agreement(tmp_path):
    root = write_results(tmp_path, ("slope",), labels=False)
    write_reports(tmp_path)
    found = Page(root / "report" / "index.html")
    (card,) = found.find("section", data_search="slope")
    assert "agreement with float32" in card[2]
    assert "top-1" not in card[2]
    assert "what is measured is agreement with float32, not whether it is right" in found.find("article")[0][2]
    # Against its own answers the float32 network is always right: no number of that kind stands anywhere.
    assert "float32 accuracy" not in found.find("article")[0][2]
    assert "share of float32" not in found.find("article")[0][2]
    assert "no labels, so it is held against the float32 network's own top-1 predictions" in found.find("header")[0][2]


def test_one_combination_has_no_trace_to_draw(tmp_path):
    root = write_results(tmp_path, ("rate_distortion",))
    search = root / "search" / "rate_distortion"
    rows, made_from = read_sealed(search / "front.csv")
    chosen = [row for row in rows if row["chosen"] == "1"]
    write_sealed(search / "front.csv", list(chosen[0]), chosen, made_from)
    write_reports(tmp_path)
    found = Page(root / "report" / "index.html")
    (article,) = found.find("article")
    assert "One combination was measured, the chosen one." in article[2]
    assert "1 combination measured on the search images." in article[2]
    assert not (root / "report" / "figures" / "rate_distortion" / "trace.svg").exists()


def test_the_held_out_section_tells_how_many_images_were_unreadable_if_any_were(tmp_path, page):
    root = write_results(tmp_path, ("slope",), skipped=3)
    write_reports(tmp_path)
    (article,) = Page(root / "report" / "index.html").find("article")
    assert "loaded anew. Unreadable images left out: 3 held-out." in article[2]
    assert all("nreadable" not in article[2] for article in page.find("article"))


def test_figures_are_those_of_the_page(folder):
    report = folder / "results" / MODEL / "report"
    page, figures = Page(report / "index.html"), report / "figures"
    names = {e[1]["data-chart"] for e in page.find("div") if "data-chart" in e[1]}
    for suffix in (".svg", ".png"):
        assert {str(p.relative_to(figures).with_suffix("")) for p in figures.rglob(f"*{suffix}")} == names
    for path in figures.rglob("*.png"):
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(image.convert("RGB").getcolors(1 << 24)) > 3
    assert all("<svg" in path.read_text() for path in figures.rglob("*.svg"))


def test_reports_are_the_same_each_time(folder, tmp_path):
    results = shutil.copytree(folder / "results", tmp_path / "results")
    before = {p.relative_to(results): p.read_bytes() for p in results.rglob("report/**/*") if p.is_file()}
    write_reports(tmp_path, drawn=True)
    after = {p.relative_to(results): p.read_bytes() for p in results.rglob("report/**/*") if p.is_file()}
    assert before == after


def test_study_compares_all_searches(study, metrics):
    (table,) = study.find("table", id="results")
    cells = [e[1]["data-value"] for e in study.inside(table, "td")]
    width = len(study.inside(table, "th"))
    rows = [cells[i : i + width] for i in range(0, len(cells), width)]
    assert {row[1] for row in rows} == set(METHODS)
    for row in rows:
        found = metrics[row[1]]
        assert (float(row[2]), row[3]) == (found["compression_rate"]["on_disk"], found["verdict"])
        assert [float(value) for value in row[4:10]] == [
            *(found["relative_quality"], *found["relative_quality_ci95"], found["quality_target"]),
            *(found["bytes"]["packed"], found["bytes"]["float32"]),
        ]
        assert [float(value) for value in row[11:16]] == [
            *(found["float32"]["top1"], found["compressed"]["top1"], found["compressed"]["kl"]),
            *(found["bits_per_weight"], found["compression_rate"]["analytic"]),
        ]
    assert {e[1]["href"] for e in study.inside(table, "a")} == {f"../{MODEL}/report/index.html"}


@pytest.mark.parametrize("stage", ["report_model", "report_study"])
def test_reports_import_no_torch(stage):
    program = f"import sys, wshare.stages.{stage}; assert 'torch' not in sys.modules"
    environment = {"PYTHONPATH": str(ROOT / "workflow")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize("study", ["config", "imagenet"])
def test_configuration_on_the_page_gives_the_same_settings(study):
    given = yaml.safe_load((ROOT / "config" / f"{study}.yaml").read_text()) | {"image_folder": "/images"}
    config = complete(given)
    for model, entry in config["models"].items():
        own = complete(json.loads(settings_of_stage(config, "report_model", model)))
        assert list(own["models"]) == [model]
        names = [name for name in config["searches"] if entry["searches"] is None or name in entry["searches"]]
        assert sorted(own["searches"]) == sorted(names)
        source = "train_model" if entry["source"] == "train" else "fetch_model"
        for stage in (source, "prepare_images", "inspect_model", "extract_weights", "profile_layers"):
            assert settings_of_stage(own, stage, model) == settings_of_stage(config, stage, model)
        for name in names:
            for stage in ("search", "evaluate_packed"):
                assert settings_of_stage(own, stage, model, name) == settings_of_stage(config, stage, model, name)


def test_program_is_a_commit_or_says_that_it_is_none():
    assert re.fullmatch(r"git commit [0-9a-f]{40}(, with changes)?|not a git checkout", program())


def test_histogram_is_relative_to_rows_with_the_norm_folded_in(tmp_path):
    root = write_results(tmp_path, ("rate_distortion",))
    (search,) = read_model_results(MODEL, report_files(root)).searches
    tensors, _ = read_shared(search.packed)
    weights = root / "model" / "weights.safetensors"
    found = histogram("depthwise", "why", weights, tensors["depthwise.weight"], search.layout)
    assert found.scaled
    assert found.counts.sum() == found.weights == 144
    from safetensors.numpy import load_file

    state = load_file(weights)
    scale = state["norm.weight"] / np.sqrt(state["norm.running_var"].astype(float) + 1e-5) / 2 ** (np.arange(16) / 8)
    relative = state["depthwise.weight"] * scale.reshape(-1, 1, 1, 1)
    assert found.edges[[0, -1]] == pytest.approx([relative.min(), relative.max()], rel=1e-6)
    plain = histogram("fc", "why", weights, tensors["fc.weight"], search.layout)
    assert not plain.scaled
    assert plain.edges[[0, -1]] == pytest.approx([state["fc.weight"].min(), state["fc.weight"].max()])
    assert set(plain.values) <= set(tensors["fc.weight"].codebook)


def packed_file(path: Path) -> dict:
    """A packed file with an entry of each kind; returns the bytes of its parts."""
    rng = np.random.default_rng(1)
    shared = {
        f"{name}.weight": Shared(
            np.arange(k, dtype=np.float32), rng.integers(k, size=(4, 5)).astype(np.uint16), exponents
        )
        for name, k, exponents in (("a", 3, None), ("b", 7, np.arange(4, dtype=np.int16)))
    }
    state = {name: tensor.weight() for name, tensor in shared.items()} | {"a.bias": np.ones(4, np.float32)}
    norm = BatchNorm(np.ones(4, np.float32), np.zeros(4, np.float32), 1e-5, True)
    folded = FoldedNorm("b.weight", np.arange(4, dtype=np.int32), 0.5, 1e-3, False)
    return write_packed(path, state, shared, {"free": norm}, {"bn": folded}, {}, "entropy")


def test_layout_of_a_packed_file_adds_up(tmp_path):
    path = tmp_path / "packed.safetensors"
    nbytes = packed_file(path)
    layout = read_layout(path)
    assert set(layout.nbytes) == {"a.weight", "b.weight", "bn", "free", "a.bias"}
    parts = nbytes["indices"] + nbytes["codebooks"] + nbytes["scales"] + nbytes["shifts"] + nbytes["kept"]
    # Checksums, flags and lengths count as header.
    assert 0 < sum(layout.nbytes.values()) - parts < nbytes["header"]
    assert layout.folded == {"b.weight": ("bn", 1e-3)}


def test_sizes_of_indices_by_hand(tmp_path):
    # 8 indices of 4 values, used 4, 2, 1 and 1 times: 2 bits each, and 1.75 bits each at their entropy.
    skewed = Shared(np.arange(4, dtype=np.float32), np.array([[0, 0, 0, 0], [1, 1, 2, 3]], np.uint16))
    # Two of three values in use, equally often: 2 bits each for three, 1 bit each at their entropy.
    halves = Shared(np.arange(3, dtype=np.float32), np.array([0, 1] * 8, np.uint16))
    assert fixed_bytes([skewed, halves]) == (16 + 32) / 8
    assert entropy_bytes([skewed, halves]) == pytest.approx((14 + 16) / 8)
    one = Shared(np.zeros(1, np.float32), np.zeros(5, np.uint16))
    assert fixed_bytes([one]) == entropy_bytes([one]) == 0
    path = tmp_path / "zeros"
    path.write_bytes(bytes(10_000))
    assert zipped_bytes(path) < 100


@pytest.mark.parametrize("search", METHODS)
def test_codings_of_indices_are_listed(page, folder, metrics, search):
    (article,) = page.find("article", data_search=search)
    path = folder / "results" / MODEL / "search" / search / "packed.safetensors"
    shared, _ = read_shared(path)
    stored = metrics[search]["bytes"]["indices"]
    fixed, ideal = fixed_bytes(shared.values()), entropy_bytes(shared.values())
    assert ideal <= stored
    for number in (stored, fixed, ideal, zipped_bytes(path)):
        assert f"{number:,.0f} B" in article[2]


@pytest.mark.parametrize(("number", "text"), [(0, "0 models"), (1, "1 model"), (1500, "1,500 models")])
def test_one_thing_is_singular(number, text):
    assert counted(number, "model") == text


def test_plan_says_what_is_known_and_no_more(tmp_path):
    config = complete(yaml.safe_load((ROOT / "config" / "config.yaml").read_text()))
    jobs = [("train_model", "t.tsv"), ("inspect_model", "i.tsv"), ("search", "s.tsv"), ("search", "u.tsv")]
    text = plan(config, tmp_path, jobs)
    assert "lenet5 on mnist: 1,500 search images; 1,500 held-out images; searches: rate_distortion, slope" in text
    assert "jobs known now: 1 train_model, 1 inspect_model, 2 search" in text
    assert "more jobs follow" in text
    assert "minutes" not in text
    parameters = [
        {"name": "a.weight", "shape": [1000], "status": "shared", "reason": ""},
        {"name": "b.weight", "shape": [10, 50], "status": "kept", "reason": "LSTM"},
    ]
    table = {"layers": [{"weights": 1000}], "parameters": parameters}
    write_json(tmp_path / "lenet5" / "model" / "layers.json", table)
    files = [str(tmp_path / name) for name in ("s.tsv", "u.tsv")]
    write_text(files[0], "s\th:m:s\tmax_rss\n90\tx\t1\n")
    jobs = [("compress", None), *(("search", file) for file in files)]
    text = plan(config, tmp_path, jobs)
    told = "ONLY 66.7% of 1,500 parameters are shared; kept as they are: 33.3% b.weight (LSTM)"
    assert f"1 layers with 1,000 weights; {told}; 12 candidates for k; " in text
    # One of the two jobs never ran: nobody can tell the time.
    assert "minutes" not in text
    write_text(files[1], "s\th:m:s\tmax_rss\n60\tx\t1\n")
    assert "these jobs took 2.5 minutes in sum when they last ran" in plan(config, tmp_path, jobs)
    assert "compress" not in plan(config, tmp_path, jobs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size(950), "950 B"),
        (size(10_900), "10.9 kB"),
        (size(1_614_274), "1.61 MB"),
        (percent(0.97061), "97.06 %"),
        (duration(2.84), "2.8 s"),
        (duration(398), "6 min 38 s"),
        (duration(59.96), "60.0 s"),
        (duration(7260), "2 h 1 min"),
        (memory(830.3), "830 MiB"),
        (memory(2406), "2.35 GiB"),
        (memory(None), "not measured"),
        (recipe(["8", "8", "dense", "4"]), "8 x2, dense, 4"),
        (recipe(map(str, range(30)), 4), "0, 1, …, 28, 29"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected


def test_a_search_that_kept_all_layers_dense_has_no_histograms(tmp_path):
    root = write_results(tmp_path, ("slope",), dense=True)
    report = root / "report"
    report_model({}, MODEL, report_files(root), report / "index.html", report / "figures")
    text = (report / "index.html").read_text()
    assert "The search kept all layers dense: there are no shared values." in text


NAMES = ("low", "kl", "bits", "images", "slope", "chosen", "k", "layer", "index", "model", "con", "weight")


@pytest.mark.parametrize("method", ["rate_distortion", "slope"])
def test_layers_named_like_anything_are_shown_right(tmp_path, method):
    """Names of columns of tables, of files on other systems, and of what lies in them."""
    root = write_results(tmp_path, (method,), layers={name: (16, 4 + i) for i, name in enumerate(NAMES)})
    model = read_model_results(MODEL, report_files(root))
    (search,) = model.searches
    ks = dict(zip(NAMES, ["16", "8", "4"] * 4, strict=True))
    assert [search.ks(row) for row in search.front if row["chosen"] == "1"] == [ks]
    assert [float(row["low"]) for row in search.front] == pytest.approx([0.87, 0.89, 0.91, 0.93])
    write_reports(tmp_path)
    page = Page(root / "report" / "index.html")
    (table,) = page.find("table", id=f"layers-{method}")
    cells = [e[1]["data-value"] for e in page.inside(table, "td")]
    rows = [cells[i : i + 10] for i in range(0, len(cells), 10)]
    assert [(row[0], row[4]) for row in rows] == list(ks.items())
    assert [int(row[6]) for row in rows] == [search.layout.nbytes[f"{name}.weight"] for name in NAMES]
    specs = json.loads(page.find("script", id="charts")[0][2])["specs"]
    drawn = specs[f"{method}/bits"]["data"]["values"]
    assert [(row["layer"], row["k"]) for row in drawn] == list(ks.items())
    points = max((layer["data"]["values"] for layer in specs[f"{method}/front"]["layer"]), key=len)
    (chosen,) = (point for point in points if point["kind"].startswith("chosen"))
    assert chosen["recipe"] == ", ".join(ks.values())
    assert chosen["share"] == 0.92
    values = specs[f"{method}/sensitivity"]["data"]["values"]
    assert list(dict.fromkeys(row["layer"] for row in values)) == list(NAMES)


def test_baselines_of_one_k_are_told_apart_by_what_they_measured(tmp_path):
    """Layers of fewer weights may have fewer values."""
    layers = {"a": (16, 3), "tiny": (2, 2)}
    root = write_results(tmp_path, ("uniform", "slope"), layers=layers)
    search = root / "search" / "uniform"
    rows, made_from = read_sealed(search / "front.csv")
    for row in rows:
        row["k:tiny"] = str(min(4, int(row["k:a"])))
    write_sealed(search / "front.csv", list(rows[0]), rows, made_from)
    model = read_model_results(MODEL, report_files(root))
    chart = front(model, next(search for search in model.searches if search.name == "slope"))
    points = max((layer["data"]["values"] for layer in chart.spec["layer"]), key=len)
    assert {p["search"] for p in points if p["kind"].startswith("uniform")} == {"uniform"}
    assert not [p for p in points if p["kind"] == "another search"]
