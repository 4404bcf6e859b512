"""Profile a group of neighbouring layers: each alone shared at each candidate k."""

from pathlib import Path

from wshare.clusters import read_clusters
from wshare.images import ImageFile
from wshare.logits import read_logits
from wshare.modelfile import read_model
from wshare.scoring import score
from wshare.sensitivity import COLUMNS, profile, row
from wshare.tables import write_table


def profile_layers(
    settings: dict, spec: Path, weights: Path, images: Path, baseline: Path, clusters: list[Path], table: Path
) -> None:
    """Write the group's rows of the sensitivity table; `clusters` are in the network's order."""
    sample = ImageFile(images, limit=settings["images"])
    logits = read_logits(baseline, sample)
    reference = score(logits, logits, sample.labels)
    probes = profile(read_model(spec, weights), [read_clusters(path) for path in clusters], sample, logits)
    write_table(table, COLUMNS, [row(probe, reference) for probe in probes])
