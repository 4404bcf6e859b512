"""Datasets by the name of their source."""

import pytest

from wshare.data.registry import open_dataset
from wshare.errors import UserError


def test_unknown_source_names_the_closest():
    with pytest.raises(UserError, match="'imagenete'.*Did you mean 'imagenet"):
        open_dataset({"source": "imagenete"})
