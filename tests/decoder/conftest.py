"""The decoder's programs, compiled once."""

from pathlib import Path

import pytest

from .build import FOLDER, compiled, driver


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Path:
    """Decodes what comes in, with sanitizers. A machine that tests has gcc."""
    return driver(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def unpack(tmp_path_factory) -> Path:
    """decoder/unpack.c, with sanitizers."""
    return compiled(tmp_path_factory.mktemp("unpack") / "unpack", FOLDER / "unpack.c")
