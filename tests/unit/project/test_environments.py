"""The environments that Snakemake can build pin what the lock file pins."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.split(";")[0].strip() for line in lines if "==" in line and not line.lstrip().startswith("#")]
    return dict(pin.split("==") for pin in pins)


@pytest.mark.parametrize("name", ["torch", "numpy", "report"])
def test_pins_equal_the_lock_file(name: str):
    environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    (packages,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert packages
    for pin in packages:
        package, version = pin.split("==")
        assert lock()[package] == version, f"{package}: envs/{name}.yaml has {version}; write the lock file's"


def test_every_rule_uses_an_environment_of_the_project():
    text = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    used = {line.strip().strip('"') for line in text.splitlines() if line.strip().startswith('"../../envs/')}
    assert used == {f"../../envs/{path.name}" for path in (ROOT / "envs").glob("*.yaml")}
