"""What mkdocs.yml calls a hook: pages outside docs/ join the site, and links between pages lead on in it.

Links are written as GitHub reads them, relative to the file that they stand in.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[1]
# Where pages of the repository outside docs/ stand in the site.
PAGES = {
    "README.md": "index.md",
    "config/README.md": "manual.md",
    "profiles/README.md": "profiles.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/, the pages outside it, and every other file of the repository that a page links to."""
    for source, page in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        for link in LINK.findall(file.content_string):
            target = target_of(file.src_uri, link)
            if (ROOT / target).is_file() and files.get_file_from_path(place_of(target)) is None:
                files.append(File.generated(config, place_of(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links pointed at places in the site."""

    def moved(match: re.Match[str]) -> str:
        return get_relative_url(place_of(target_of(page.file.src_uri, match[1])), page.file.src_uri)

    return LINK.sub(moved, markdown)


def target_of(page: str, link: str) -> str:
    """Path in the repository that a link of a page leads to."""
    source = SOURCES.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def place_of(path: str) -> str:
    """Path in the site of a file of the repository."""
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}")
