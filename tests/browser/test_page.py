"""decoder/page: ONNX Runtime in a browser, with weights from a packed file, answers as it does in Python."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import PIL.Image
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from torch import nn

from tests.unit.test_nn import pack
from wshare.data.images import normalised
from wshare.data.prepare import prepare
from wshare.exports.table import FORMATS
from wshare.models.preprocessing import INTERPOLATIONS, complete_preprocessing

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "decoder" / "page"
RUNTIME = PAGE / "node_modules" / "onnxruntime-web" / "dist"
GIVEN = {"resize": 20, "crop": 16, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 0.2]}
CATEGORIES = [f"kind <{number}>" for number in range(7)]
PREPARED = """async ([name, preprocessings]) => {
  const { prepared } = await import(new URL("/page/pixels.js", location));
  const image = await createImageBitmap(await (await fetch(name)).blob(), { colorSpaceConversion: "none" });
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height);
  return preprocessings.map(preprocessing => {
    const { data, dims } = prepared(pixels, preprocessing);
    return [Array.from(data), dims];
  });
}"""


def picture(path: Path, width: int, height: int) -> PIL.Image.Image:
    """Noise over a slope, without loss."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    pixels = (slope + rng.integers(36, size=(height, width, 3))).astype(np.uint8)
    pixels[::5] = rng.choice([0, 255], size=pixels[::5].shape)
    image = PIL.Image.fromarray(pixels)
    image.save(path)
    return image


def expected(image: PIL.Image.Image, preprocessing: dict) -> torch.Tensor:
    return normalised(prepare(image, preprocessing)[None], preprocessing["mean"], preprocessing["std"])


@pytest.fixture
def site(tmp_path) -> Path:
    """The decoder and its page, with the package that the page takes."""
    assert RUNTIME.is_dir(), "no onnxruntime-web: run make test-browser"
    shutil.copy(ROOT / "decoder" / "wshare.js", tmp_path)
    shutil.copytree(PAGE, tmp_path / "page", ignore=shutil.ignore_patterns("node_modules", "*.onnx", "*.safetensors"))
    dist = tmp_path / "page" / RUNTIME.relative_to(PAGE)
    dist.mkdir(parents=True)
    for path in (RUNTIME / "ort.wasm.min.mjs", *RUNTIME.glob("ort-wasm-simd-threaded.[mw]*")):
        (dist / path.name).symlink_to(path)
    return tmp_path


def installed(site: Path) -> tuple[Path, dict]:
    """The graph and the packed file of a small network; the graph with its data elsewhere, and the preprocessing."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(200, 7)).eval()
    preprocessing = complete_preprocessing({}, GIVEN)
    packed = pack(model, site / "page" / "packed.safetensors")
    elsewhere = site / "python"
    elsewhere.mkdir()
    description = {"preprocessing": preprocessing, "categories": CATEGORIES}
    FORMATS["onnx-external"].write(packed, elsewhere / "network.onnx", model, torch.zeros(1, 3, 16, 16), description)
    FORMATS["onnx-data"].write(packed, elsewhere / "network.onnx.data")
    shutil.copy(elsewhere / "network.onnx", site / "page")
    return elsewhere / "network.onnx", preprocessing


def test_it_classifies_as_python_does(visit, served, site):
    graph, preprocessing = installed(site)
    image = picture(site / "picture.png", 41, 30)
    page = visit.page
    page.goto(f"{served}/page/index.html")
    page.wait_for_selector("#picture:enabled")
    page.set_input_files("#picture", site / "picture.png")
    page.wait_for_selector("#classes tr")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": expected(image, preprocessing).numpy()})
    shares = torch.softmax(torch.from_numpy(logits[0]), 0)
    order = shares.argsort(descending=True)[:5].tolist()
    rows = page.eval_on_selector_all(
        "#classes tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )
    assert rows[:5] == [[CATEGORIES[place], f"{100 * shares[place]:.1f} %"] for place in order]
    packed, data = site / "page" / "packed.safetensors", graph.with_name("network.onnx.data")
    sizes = [packed.stat().st_size + graph.stat().st_size, data.stat().st_size]
    assert page.locator("#sizes td").all_inner_texts()[:2] == [f"{size:,} bytes" for size in sizes]
    found = page.evaluate(
        """async () => {
          const { load, run } = await import("./network.js");
          const bytes = async name => new Uint8Array(await (await fetch(name)).arrayBuffer());
          const network = await load(await bytes("network.onnx"), await bytes("packed.safetensors"));
          const { outputs } = await run(network, await createImageBitmap(await (await fetch("/picture.png")).blob()));
          return Array.from(outputs);
        }"""
    )
    np.testing.assert_allclose(found, logits[0], atol=1e-5 * np.abs(logits).max())
    assert visit.said == []
    # From this machine alone.
    assert [url for url in visit.asked if not url.startswith((served, "data:", "blob:"))] == []
    assert Axe().run(page).response["violations"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: pack(nn.Conv2d(1, 2, 3), page / "packed.safetensors"), "the graph was written from another one"),
        (lambda page: (page / "network.onnx").write_bytes(b"\x08\x08"), "the graph: not written by wshare export"),
        (lambda page: (page / "packed.safetensors").unlink(), "packed.safetensors: 404"),
    ],
)
def test_files_that_do_not_belong_together_are_told(visit, served, site, change, message):
    installed(site)
    change(site / "page")
    visit.page.goto(f"{served}/page/index.html")
    visit.page.wait_for_function(f"document.getElementById('said').textContent.includes({message!r})")
    assert visit.page.is_disabled("#picture")


@pytest.mark.parametrize(("width", "height"), [(41, 30), (17, 50), (9, 8)])
def test_pictures_are_prepared_to_the_bit(visit, served, site, width, height):
    """As Pillow does it: enlarged and made smaller, by every kernel, with and without crop, of one channel and three.

    Some lose many more rows than columns: those are made smaller in the other order.
    """
    image = picture(site / "picture.png", width, height)
    changes = [{"interpolation": name} for name in INTERPOLATIONS]
    changes += [
        {"resize": None},
        {"resize": None, "crop": [7, 64]},
        {"crop": None},
        {"resize": [33, 16]},
        {"resize": [20, 33]},
    ]
    changes += [{"resize": None, "letterbox": 114}, {"order": "bgr"}]
    changes += [{"channels": 1, "mean": [0.1], "std": [0.3]}]
    preprocessings = [complete_preprocessing({}, GIVEN | change) for change in changes]
    visit.page.goto(f"{served}/page/pixels.js")
    found = visit.page.evaluate(PREPARED, ["/picture.png", preprocessings])
    for (values, dims), preprocessing in zip(found, preprocessings, strict=True):
        array = expected(image, preprocessing).numpy()
        assert dims == list(array.shape), preprocessing
        assert np.array(values, np.float32).tobytes() == array.tobytes(), preprocessing
