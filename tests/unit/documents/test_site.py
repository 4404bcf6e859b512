"""The documents build into a site without a warning, and nothing of it is loaded from a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # A notice of the theme about its own future is no warning about the pages.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_no_page_loads_anything_from_a_server(site):
    loaded = r"<(?:script|img|iframe|source)[^>]* src=[\"']?(\w*:?//[^\"' >]+)|<link[^>]* href=[\"']?(\w*:?//[^\"' >]+)"
    pages = list(site.rglob("*.html"))
    assert len(pages) > 5
    assert [(page.name, found) for page in pages for found in re.findall(loaded, page.read_text())] == []


def test_search_knows_the_pages_and_needs_no_server(site):
    text = (site / "search" / "search_index.js").read_text().removeprefix("var __index = ")
    places = {entry["location"].partition("#")[0] for entry in json.loads(text)["docs"]}
    assert places >= {"index.html", "manual.html", "configuration.html", "results.html", "commands.html", "format.html"}
    for page in site.glob("*.html"):
        if page.name != "404.html":
            assert '<script src="javascripts/iframe-worker.js"' in page.read_text()
    assert (site / "javascripts" / "iframe-worker.js").is_file()


def test_pages_outside_the_folder_are_in_the_site_and_their_links_stay_in_it(site):
    home = (site / "index.html").read_text()
    assert 'href="manual.html"' in home
    assert 'href="source/CITATION.cff"' in home
    assert 'src="images/front.svg"' in home
    assert (site / "images" / "front.svg").read_bytes() == (ROOT / "docs" / "images" / "front.svg").read_bytes()
