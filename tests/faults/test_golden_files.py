"""Every version of the packed format that was ever written is read, to the bit."""

import hashlib
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from wshare.packed.format import load_packed

from ..data.golden_v3 import write_golden

DATA = Path(__file__).parents[1] / "data"
# A golden file never changes: a new one is added beside it.
GOLDEN = {
    "v1": "36751b224849d2abfe755a4c25b267c617f126d5d3d967fa66d070c52250277c",
    "v2_entropy": "436903324ea4a63a5e76dfce5ecfe386d82fd02b16e78fb15622acb1d6ef17ba",
    "v2_fixed": "358eb2eb34f021fe3d83bb2b5624c006696eb6aca4c95d642de80508a4d551af",
    "v3_entropy": "b0acfe4fdb1f4abf086fd3388cc7d4b461f61356267db0e71fea2c6587a7d0bf",
    "v3_fixed": "fc9c68c53e30a6716ebbe4b2e4645b9f89f393e36b62694b924db3ba74d50550",
}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_a_golden_file_decodes_to_the_bit(name):
    path = DATA / f"golden_{name}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GOLDEN[name]
    loaded, expected = load_packed(path), load_file(DATA / f"golden_{name[:2]}_expected.safetensors")
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        assert (tensor.numpy().dtype, tuple(tensor.shape)) == (expected[key].dtype, expected[key].shape)
        assert tensor.numpy().tobytes() == expected[key].tobytes()


def test_the_script_writes_the_golden_files_again(tmp_path):
    write_golden(tmp_path)
    for name in ("v3_entropy", "v3_fixed", "v3_expected"):
        file = f"golden_{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (DATA / file).read_bytes()
