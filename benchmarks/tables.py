"""Tables of README.md and docs/benchmarks.md, from the files in benchmarks/results.

    python benchmarks/tables.py

Renews what stands between the marks `<!-- name -->` and `<!-- end -->` of both pages. It measures nothing:
benchmarks/results/README.md tells which command writes which file. A test holds the pages against the files.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterable
from statistics import mean

from gather import RESULTS, ROOT, read

sys.path.insert(0, str(ROOT / "workflow"))
from wshare.report.texts import percent, size

LITE0 = "efficientnet_lite0"
FRONT = ["kl_001", "kl_006", "kl_012", "kl_025", "kl_050", "kl_100", "kl_200", "kl_400"]
TARGETS = ["rate_distortion", "rate_distortion_98", "fixed"]
# Searches of benchmarks/splits.yaml around a divergence on held-out images, in nats.
AROUND, KL = ["kl_0_05", "kl_0_075"], 0.05
# Models of benchmarks/further.yaml.
FURTHER = {
    "few": "100 search images",
    "few_and_further": "the same, and 300 further images without labels",
    "all_labelled": "all 400 as search images",
}
# The search of benchmarks/lites.yaml, and its networks.
LITES = "rate_distortion_98", ("efficientnet_lite1", "efficientnet_lite2")
# Searches of one k a layer, to the target of 0.99.
OTHERS = ["slope", "two_step", "uniform"]
PARTS = {
    "kl_050": "everything on",
    "no_entropy_coder": "indices of fixed width, k-means codebooks",
    "no_error_feedback": "no error feedback",
    "no_bias_correction": "no correction of means",
    "no_least_squares": "no least-squares codebook",
    "no_assignment_descent": "no assignment descent (AdaRound's objective)",
    "no_variance_matching": "variances not matched",
    "no_folding": "batch norm not folded",
    "no_probe": "sensitivities not probed",
}
# Searches of benchmarks/gradient.yaml.
GRADIENT = {
    "target": "99 % of the accuracy",
    "target_gradient": "the same, gradient calibration",
    "kl": "0.005 nats",
    "kl_gradient": "the same, gradient calibration",
}
# Peers that README.md shows: method, setting, and words for both.
BESIDE = {
    ("nncodec", "qp -28"): "nncodec 2.1.3 (ISO/IEC 15938-17), qp -28",
    ("nncodec_tuned", "qp -32"): "nncodec 2.1.3, best options found, qp -32",
    ("uniform_kmeans", "k 64"): "k-means, 64 values in every layer",
    ("round_to_nearest", "int4"): "round to nearest, int4 per channel",
}
CASES = {
    "lite0_all": "EfficientNet-Lite0, all {layers} layers",
    "lite0_classifier": "its classifier",
    "resnet50_largest": "ResNet50's largest layer",
    "vgg16_dense": "VGG16's first dense layer",
    "kmeans1d_classifier": "kmeans1d on the classifier",
}
CONTENDERS = {
    "openvino_throughput": "OpenVINO, throughput hint",
    "onnxruntime": "ONNX Runtime",
    "openvino_latency": "OpenVINO, latency hint",
    "wshare": "**wshare's evaluation** (reads and normalises the images too)",
    "torch_compile": "torch.compile",
    "wshare_1_thread": "the same on one thread as wshare's",
    "pytorch_batch_8": "PyTorch eager, batches of 8",
    "pytorch_batch_32": "PyTorch eager, batches of 32",
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Files:
    """Tables of benchmarks/results, each read once, as text by column."""

    def __init__(self) -> None:
        self._read: dict[str, list[dict[str, str]]] = {}

    def __getitem__(self, name: str) -> list[dict[str, str]]:
        if name not in self._read:
            self._read[name] = read(RESULTS / f"{name}.csv")
        return self._read[name]

    def search(self, table: str, search: str, model: str = LITE0) -> dict[str, str]:
        """The row of one search in a table that has one split."""
        (row,) = (row for row in self[table] if (row["model"], row["search"]) == (model, search))
        return row

    def split(self, search: str, seed: str) -> dict[str, str]:
        """The row of one search on one split."""
        (row,) = (row for row in self["splits"] if (row["search"], row["seed"]) == (search, seed))
        return row

    def peer(self, method: str, setting: str) -> dict[str, str]:
        """The row of one setting of a peer."""
        (row,) = (row for row in self["peers"] if (row["method"], row["setting"]) == (method, setting))
        return row

    def value(self, name: str) -> float:
        """A figure that stands alone, from other.csv."""
        (row,) = (row for row in self["other"] if row["name"] == name)
        return float(row["value"])


def table(head: str, rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table; `head` has the titles, parted by bars."""
    return [f"| {head} |", "|---" * (head.count("|") + 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def measured(rows: Iterable[dict[str, str]]) -> list[str]:
    """A line that tells which versions measured the rows."""
    return ["", f"*Measured with version {' and '.join(dict.fromkeys(row['measured'] for row in rows))}.*"]


def rate(row: dict[str, str], name: str = "on_disk") -> str:
    """A rate of compression."""
    return f"{float(row[name]):.2f}x"


def share(row: dict[str, str], name: str = "relative_quality") -> str:
    """A share of the float32 accuracy, held against the row's target."""
    return percent(float(row[name]), float(row["quality_target"]))


def kept(row: dict[str, str]) -> str:
    """A share of the float32 accuracy and its interval."""
    return f"{share(row)} ({share(row, 'low')} to {share(row, 'high')})"


def expects(row: dict[str, str]) -> str:
    """The share that the float32 network itself expects, and its interval."""
    return f"{share(row, 'expected')} ({share(row, 'expected_low')} to {share(row, 'expected_high')})"


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    """Numbers of a column."""
    return [float(row[name]) for row in rows]


def one(values: Iterable[str]) -> str:
    """The one value that all have."""
    (value,) = set(values)
    return value


def splits(files: Files) -> list[str]:
    """Searches to a target over all splits: means and ranges, and how the means stand to the targets."""
    of = {name: [row for row in files["splits"] if row["search"] == name] for name in TARGETS}
    images = "{} search and {} held-out images".format(
        *(one(row[name] for row in files["splits"]) for name in ("search_images", "images"))
    )
    number = len(of[TARGETS[0]])
    over = f"Over {NUMBERS[number]} splits into {images}, each by a seed of its own: means, and ranges in brackets."
    words = over if number > 1 else f"On one split into {images}."
    rows, sentences = [], []
    for name, found in of.items():
        target = float(one(row["quality_target"] for row in found))
        rates, shares = column(found, "on_disk"), column(found, "relative_quality")
        loss = column(found, "kl")
        average, expected = mean(shares), mean(column(found, "expected"))
        verdicts = [f"{sum(row['verdict'] == word for row in found)} {word}" for word in ("met", "undecided", "missed")]
        rows.append(
            (
                f"`{name}`",
                percent(target),
                f"**{mean(rates):.2f}x** ({min(rates):.2f}x to {max(rates):.2f}x)",
                f"{percent(average, target)} ({percent(min(shares), target)} to {percent(max(shares), target)})",
                percent(expected, target),
                f"{mean(loss):.4f} ({min(loss):.4f} to {max(loss):.4f})",
                ", ".join(verdicts),
            )
        )
        side = "below its target" if average < target else "at its target or above"
        sentences.append(f"- `{name}` keeps {percent(average, target)} on average: {side}.")
    head = "search | quality target | times smaller on disk | accuracy kept | as float32 expects | KL, nats | verdicts"
    return [words, "", *table(head, rows), "", *sentences, *measured(itertools.chain(*of.values()))]


def at_kl(files: Files) -> list[str]:
    """The rate of each split at one divergence on held-out images, between two searches, on logarithmic axes."""
    found, rows = [], []
    for seed in dict.fromkeys(row["seed"] for row in files["splits"]):
        both = [files.split(name, seed) for name in AROUND]
        losses, rates = ([math.log(float(row[name])) for row in both] for name in ("kl", "on_disk"))
        share = (math.log(KL) - losses[0]) / (losses[1] - losses[0])
        found.append(math.exp(rates[0] + share * (rates[1] - rates[0])))
        rows.append(
            (
                seed,
                *(f"{rate(row)}, {float(row['kl']):.4f}, {float(row['agreement']):.4f}" for row in both),
                f"{found[-1]:.2f}x" + ("" if 0 <= share <= 1 else ", beyond both"),
            )
        )
    rows.append(("mean", "", "", f"**{mean(found):.2f}x**"))
    head = f"seed | {' | '.join(f'`{name}`: rate, KL, agreement' for name in AROUND)} | rate at {KL} nats"
    return [*table(head, rows), *measured([row for row in files["splits"] if row["search"] in AROUND])]


def further(files: Files) -> list[str]:
    """Searches with few labelled images, with and without further images, means over the seeds."""
    rows = []
    for name, words in FURTHER.items():
        of = [row for row in files["further"] if row["model"] == name]
        rates = column(of, "on_disk")
        rows.append(
            (
                *(words, f"**{mean(rates):.2f}x**", f"{min(rates):.2f}x to {max(rates):.2f}x"),
                *(f"{mean(column(of, 'kl')):.4f}", f"{mean(column(of, 'agreement')):.4f}"),
            )
        )
    head = "images | times smaller on disk, mean | range | KL on held-out images | agreement"
    return [*table(head, rows), *measured(files["further"])]


def each_split(files: Files) -> list[str]:
    """Every split of `splits`, with the float32 network's accuracy on both halves."""
    head = (
        "search | seed | float32 on search images | on held-out images | on disk | accuracy kept, 95 % interval "
        "| as float32 expects | KL | kept right, lost, gained | verdict"
    )
    rows = [
        (
            f"`{row['search']}`",
            row["seed"],
            percent(float(row["before_on_search"])),
            percent(float(row["before"])),
            rate(row),
            kept(row),
            share(row, "expected"),
            f"{float(row['kl']):.4f}",
            ", ".join(row[name] for name in ("kept", "lost", "gained")) if row["kept"] else "-",
            row["verdict"],
        )
        for name in TARGETS
        for row in files["splits"]
        if row["search"] == name
    ]
    return table(head, rows)


def beside(files: Files) -> list[str]:
    """A few points of the front, ours and the peers'."""
    ours = {
        "rate_distortion_98": "**wshare**, quality target 0.98",
        "rate_distortion": "**wshare**, quality target 0.99",
        "fixed": "wshare, target 0.99, indices of fixed width",
    }
    rows = []
    for name, words in ours.items():
        row = files.search("study", name)
        rows.append((words, f"**{rate(row)}** on disk", share(row), f"{float(row['kl']):.3f}"))
    for key, words in BESIDE.items():
        row = files.peer(*key)
        basis = "on disk" if row["size_basis"] == "file" else row["size_basis"]
        rows.append(
            (words, f"{rate(row, 'rate')} {basis}", percent(float(row["relative_quality"])), f"{float(row['kl']):.3f}")
        )
    claim = ("the paper's claim for its five networks, not run by us", "over 5x analytic", "99 %", "not given")
    rows.insert(len(ours), claim)
    return [
        *table("| times smaller | accuracy kept | KL, nats", rows),
        *measured([files.search("study", "fixed"), *files["peers"]]),
    ]


def demo(files: Files) -> list[str]:
    """What the demo's networks with labels came to."""
    head = (
        "network | search | float32 file | packed file | on disk | analytic | bits/weight | top-1 before | after "
        "| share of float32 (95 % interval) | target | verdict | evaluations"
    )
    found = [row for row in files["demo"] if float(row["before"]) != 1]
    rows = [
        (
            row["model"],
            f"`{row['search']}`",
            size(float(row["float32_bytes"])),
            size(float(row["packed_bytes"])),
            f"**{rate(row)}**",
            rate(row, "analytic"),
            f"{float(row['bits_per_weight']):.2f}",
            percent(float(row["before"])),
            percent(float(row["after"])),
            kept(row),
            percent(float(row["quality_target"])),
            row["verdict"],
            row["evaluations"],
        )
        for row in found
    ]
    return [*table(head, rows), *measured(found)]


def photos(files: Files) -> list[str]:
    """What the search on crops of photographs came to, on other crops and on ImageNet."""
    crops, other = files.search("demo", "crops"), files.search("photos", "crops")
    return [
        f"Its file has {size(float(crops['packed_bytes']))} instead of {size(float(crops['float32_bytes']))}, "
        f"**{rate(crops)}** on disk. On {crops['images']} held-out crops, which show",
        f"other photographs, its top-1 prediction is the float32 network's for {kept(crops)}:",
        f"`{crops['verdict']}` against a target of {percent(float(crops['quality_target']))}. "
        f"On {other['images']} ImageNet validation images the same",
        f"file keeps {kept(other)} of the float32 accuracy, {expects(other)}",
        f"as float32 expects it, at a divergence of {float(other['kl']):.3f} nats and an agreement of "
        f"{float(other['agreement']):.3f}.",
        *measured([crops, other]),
    ]


def targets(files: Files) -> list[str]:
    """Searches to a target on one split: a row for each verdict."""
    found = [(name, files.search("study", name)) for name in (*TARGETS, *OTHERS)]
    return _targets(found)


def lites(files: Files) -> list[str]:
    """The same of EfficientNet-Lite1 and Lite2."""
    return _targets([(model, files.search("study", LITES[0], model)) for model in LITES[1]])


def _targets(found: list[tuple[str, dict[str, str]]]) -> list[str]:
    head = "| target | on disk | relative accuracy, 95 % interval | as float32 expects it | KL | agreement "
    rows = [
        (
            f"`{name}` ({row['format']})",
            percent(float(row["quality_target"])),
            f"**{rate(row)}**",
            kept(row),
            expects(row),
            f"{float(row['kl']):.4f}",
            f"{float(row['agreement']):.4f}",
            f"{int(row['images_forwarded']):,}",
            row["verdict"],
        )
        for name, row in found
    ]
    return [*table(f"{head}| images forwarded | verdict", rows), *measured(row for _, row in found)]


def front_points(files: Files) -> list[tuple[str, str, float, str, dict[str, str]]]:
    """Method, setting, rate, what its size counts, and row of every point; by method and rate."""
    ours = {name: ("**wshare** rate_distortion", f"KL {int(name[3:]) / 1000:g} on search images") for name in FRONT}
    ours |= {name: (f"wshare {name}", "quality target 0.99") for name in OTHERS}
    rows = {name: files.search("study", name) for name in ours}
    found = [(*words, float(rows[name]["on_disk"]), "file", rows[name]) for name, words in ours.items()]
    found += [(row["method"], row["setting"], float(row["rate"]), row["size_basis"], row) for row in files["peers"]]
    return sorted(found, key=lambda point: (point[0], point[2]))


def front(files: Files) -> list[str]:
    """Every method's points by rate."""
    rows = [
        (
            *(method, setting, f"{times:.2f}x", basis),
            *(f"{float(row['relative_quality']):.3f}", f"{float(row['kl']):.4f}", f"{float(row['agreement']):.4f}"),
        )
        for method, setting, times, basis, row in front_points(files)
    ]
    head = "method | setting | rate | size counted | relative accuracy | KL | agreement"
    return [*table(head, rows), *measured(row for *_, row in front_points(files))]


def at_equal_kl(files: Files, rows: Iterable[dict[str, str]]) -> list[tuple[dict[str, str], float, float]]:
    """Each peer's file, our rate at its divergence (our front on logarithmic axes), and by what ours is smaller."""
    ours = [files.search("study", name) for name in FRONT]
    points = sorted((math.log(float(row["kl"])), math.log(float(row["on_disk"]))) for row in ours)
    found = []
    for row in rows:
        kl = math.log(float(row["kl"]))
        for (low, first), (high, second) in itertools.pairwise(points):
            if low <= kl < high:
                times = math.exp(first + (second - first) * (kl - low) / (high - low))
                found.append((row, times, 1 - float(row["rate"]) / times))
    return found


def equal_points(files: Files) -> list[tuple[dict[str, str], float, float]]:
    """Those of nncodec."""
    return at_equal_kl(files, [row for row in files["peers"] if row["method"].startswith("nncodec")])


def equal(files: Files) -> list[str]:
    """Our size at the divergence of each nncodec file."""
    rows = [
        (
            f"{row['method']} {row['setting']}",
            rate(row, "rate"),
            f"{float(row['kl']):.4f}",
            f"{ours:.2f}x",
            f"{smaller:.1%}",
        )
        for row, ours, smaller in equal_points(files)
    ]
    return table("nncodec | its rate | KL | our rate at this KL | our file is smaller by", rows)


def cerwu(files: Files) -> list[str]:
    """The same of CERWU's files, with what their answers are worth."""
    rows = [
        (
            row["variant"],
            *(rate(row, "rate"), f"{float(row['kl']):.4f}"),
            *(f"{float(row['agreement']):.4f}", f"{float(row['expected']):.4f}"),
            *(f"{ours:.2f}x", f"{smaller:.1%}"),
        )
        for row, ours, smaller in at_equal_kl(files, files["cerwu"])
    ]
    head = "CERWU | its rate | KL | agreement | expected accuracy | our rate at this KL | our file is smaller by"
    return [*table(head, rows), *measured(files["cerwu"])]


def equal_kl(files: Files) -> list[str]:
    """Sizes of files of format version 3 beside those before it."""
    rows = [
        (
            *(row["model"], {"search": "search", "held_out": "held-out"}[row["images"]]),
            f"{float(row['least_kl']):.4f} to {float(row['most_kl']):.4f}",
            *(f"{float(row[name]):.3f}" for name in ("ratio", "least_ratio", "most_ratio")),
        )
        for row in files["equal_kl"]
    ]
    head = "network | images | KL | size after over before, mean | least | most"
    return [*table(head, rows), *measured(files["equal_kl"])]


def knowledge(files: Files) -> list[str]:
    """Size at equal divergence by the number of images that calibration has seen, means over the splits."""
    of: dict[tuple[str, int], list[float]] = {}
    for row in files["knowledge"]:
        of.setdefault((row["taught_by"], int(row["images"])), []).append(float(row["bits_per_weight"]))
    most = max(images for taught_by, images in of if taught_by == "search")
    rows = [
        (
            str(images) if taught_by == "search" else f"{images}, the held-out ones among them",
            *(f"{mean(bits):.2f}", f"{min(bits):.2f} to {max(bits):.2f}"),
            f"{mean(bits) / mean(of['search', most]) - 1:+.1%}",
        )
        for (taught_by, images), bits in of.items()
    ]
    head = f"images that teach | bits a weight at 0.05 nats | range | indices beside those of {most} images"
    return [*table(head, rows), *measured(files["knowledge"])]


def gradient(files: Files) -> list[str]:
    """Searches with and without gradient calibration, means over the seeds."""
    rows = []
    for model in dict.fromkeys(row["model"] for row in files["gradient"]):
        for search, words in GRADIENT.items():
            of = [row for row in files["gradient"] if (row["model"], row["search"]) == (model, search)]
            rates, met = column(of, "on_disk"), sum(row["verdict"] == "met" for row in of)
            rows.append(
                (
                    *(model, words, f"{mean(rates):.2f}x", f"{min(rates):.2f}x to {max(rates):.2f}x"),
                    f"{mean(column(of, 'kl')):.4f}",
                    percent(mean(column(of, "relative_quality")), float(of[0]["quality_target"])),
                    f"{met} of {len(of)}",
                )
            )
    head = "network | search | rate, mean | range | KL | share of float32's accuracy | met"
    return [*table(head, rows), *measured(files["gradient"])]


def gradient_images(files: Files) -> list[str]:
    """Divergence after gradient calibration over that before, means over the splits."""
    of: dict[tuple[str, int, int], list[float]] = {}
    for row in files["gradient_images"]:
        key = row["model"], int(row["images"]), int(row["passes"])
        of.setdefault(key, []).append(float(row["kl_after"]) / float(row["kl_before"]))
    passes = sorted({count for _, _, count in of})
    rows = [
        (model, str(images), *(_mean(of.get((model, images, count), [])) for count in passes))
        for model, images in dict.fromkeys((model, images) for model, images, _ in of)
    ]
    head = f"network | images | {' | '.join(f'{count} pass' + 'es' * (count > 1) for count in passes)}"
    return [*table(head, rows), *measured(files["gradient_images"])]


def _mean(values: list[float]) -> str:
    return f"{mean(values):.2f}" if values else "-"


def ablation(files: Files) -> list[str]:
    """Each part turned off alone, at one divergence on search images."""
    found = {name: files.search("study", name) for name in PARTS}
    whole = found["kl_050"]
    rows = []
    for name, row in found.items():
        # Halving the divergence takes half a bit a weight at high rate.
        bits = float(row["bits_per_weight"]) + 0.5 * math.log2(float(row["kl"]) / float(whole["kl"]))
        rows.append(
            (
                *(PARTS[name], rate(row), f"{float(row['kl']):.4f}", f"{float(row['relative_quality']):.3f}"),
                f"{bits / float(whole['bits_per_weight']) - 1:+.1%}",
            )
        )
    head = "| on disk | KL on held-out images | relative accuracy | bytes at equal KL"
    return [*table(head, rows), *measured(found.values())]


def clustering(files: Files) -> list[str]:
    """Time and memory of clustering, from benchmarks/clustering.py."""
    rows = []
    for row in files["clustering"]:
        k = "every k up to 256" if row["k"] == "1-256" else f"{row['k']} alone"
        wall, cpu = (_seconds(float(row[name])) for name in ("wall_seconds", "cpu_seconds"))
        memory = f"{int(row['peak_mb']):,} MB"
        rows.append(
            (CASES[row["case"]].format(**row), f"{int(row['weights']) / 1e6:.2f} M", k, f"{wall} s", f"{cpu} s", memory)
        )
    return [*table("case | weights | k | wall | CPU | peak memory", rows), *measured(files["clustering"])]


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def inference(files: Files) -> list[str]:
    """Images a second, from benchmarks/inference.py."""
    rows = [
        (
            CONTENDERS[row["contender"]],
            row["images_per_second"],
            f"{float(row['slowest']):.0f} to {float(row['fastest']):.0f}",
        )
        for row in sorted(files["inference"], key=lambda row: -float(row["images_per_second"]))
    ]
    return [*table("| images a second, median | slowest to fastest", rows), *measured(files["inference"])]


def _decoder(files: Files, name: str) -> float:
    (row,) = (row for row in files["decoder"] if row["name"] == name)
    return float(row["value"])


def decoder_code(files: Files) -> list[str]:
    """Code size of the decoder in C, from benchmarks/decoder.py."""
    names = {"code_all": "versions 1 to 3", "code_v3": "version 3 alone"}
    rows = [(words, f"{_decoder(files, name):,.0f}") for name, words in names.items()]
    return [*table("reads | bytes of code, Cortex-M4", rows), *measured(files["decoder"])]


def decoder_fuzz(files: Files) -> list[str]:
    """What the fuzzer of the decoder in C found in ten minutes."""
    rows = [row for row in files["other"] if row["name"] == "fuzz_decoder"]
    found = f"On one core it tried {float(rows[0]['value']):,.0f} inputs in ten minutes and found none."
    return [found, *measured(rows)]


def decoder_speed(files: Files) -> list[str]:
    """Speed and memory of the decoder in C beside Python's reader, from benchmarks/decoder.py."""
    names = {
        "v2_given": "version 2, entropy-coded",
        "v3_entropy": "version 3, entropy-coded",
        "v3_fixed": "version 3, fixed width",
    }
    rows = []
    for name, words in names.items():
        octets = [f"{_decoder(files, f'{name}_{what}'):,.0f}" for what in ("bytes", "index", "scratch")]
        speeds = [f"{1000 * _decoder(files, f'{name}_{what}'):.0f} ms" for what in ("c", "python")]
        rows.append((words, *octets, *speeds))
    return [*table("file | bytes | index | work, at most | C | Python", rows), *measured(files["decoder"])]


def compressed(files: Files) -> list[str]:
    """Memory and time of a network that stays compressed, by budget, from benchmarks/compressed.py."""
    words = {
        "dense": "the dense network",
        "none": "none",
        "fourth": "a fourth of all, {}",
        "half": "a half, {}",
        "all": "all, {}",
    }
    default, given_back = (
        [row for row in files["compressed"] if row["environment"] == name] for name in ("default", "given_back")
    )
    rows = []
    for row, other in zip(default, given_back, strict=True):
        name = words[row["network"]].format(size(float(row["budget"] or 0)))
        rows.append(
            (
                name,
                f"{int(row['compressed']) + int(row['held']):,}",
                *(size(float(cell)) for cell in (row["resident"], row["highest"], other["highest"])),
                *(f"{float(cell):.2f}" for cell in (row["one_ratio"], other["one_ratio"], row["batch_ratio"])),
            )
        )
    head = (
        "budget | bytes held | resident | highest | highest, given back | an image | an image, given back | in a batch"
    )
    first = default[0]
    alone, tight, batch = (float(time) for time in (first["one_ms"], given_back[0]["one_ms"], first["batch_ms"]))
    time = (
        f"A time is the median of {first['rounds']} ratios to the dense network's, which took {alone:.0f} ms and "
        f"{tight:.0f} ms for an image alone and {batch:.0f} ms an image in a batch of {first['batch']}; memory is the "
        f"median of {NUMBERS[int(first['processes'])]} processes."
    )
    return [*table(head, rows), "", time, *measured(files["compressed"])]


def formats(files: Files) -> list[str]:
    """What each format of `rate_distortion` takes at one divergence on search images, from benchmarks/formats.py."""
    rows, words = files["formats"], {"": "the packed file itself", "onnx": "`onnx`", "onnx-qdq": "`onnx-qdq`"}
    lines = []
    for form in dict.fromkeys(row["format"] for row in rows):
        own = [row for row in rows if row["format"] == form]

        def average(name: str, own: list[dict[str, str]] = own) -> float:
            return mean(float(row[name]) for row in own)

        export = own[0]["export"]
        lines.append(
            (
                f"`{form}`",
                f"{average('packed_bytes'):,.0f}",
                f"{mean(float(row['float32_bytes']) / float(row['packed_bytes']) for row in own):.2f}x",
                f"{average('analytic'):.2f}x",
                words.get(export, f"`{export}`"),
                f"{average('export_bytes' if export else 'packed_bytes'):,.0f}",
                f"{average('kl'):.4f}",
                f"{average('agreement'):.4f}",
                percent(average("relative_quality")),
            )
        )
    head = (
        "format | packed file, bytes | on disk | analytic, by the format's bytes | runtime takes | bytes | divergence"
    )
    return [*table(f"{head} | agreement | share of float32", lines), *measured(rows)]


def networks(files: Files) -> list[str]:
    """CPU seconds and peak memory of each stage, a column a network, from benchmarks/networks.py."""
    names, stages = (list(dict.fromkeys(row[key] for row in files["networks"])) for key in ("network", "stage"))
    cells = {(row["network"], row["stage"]): row for row in files["networks"]}
    rows = [
        (f"`{stage}`", *(f"{row['cpu_seconds']}, {row['peak_mb']}" for row in (cells[name, stage] for name in names)))
        for stage in stages
    ]
    for title, key in (("jobs", "jobs"), ("images forwarded", "images_forwarded")):
        rows.append((title, *(str(sum(int(cells[name, stage][key]) for stage in stages)) for name in names)))
    return [*table(f"CPU s, peak MB | {' | '.join(names)}", rows), *measured(files["networks"])]


def brought(files: Files) -> list[str]:
    """A row for each network that a package ships, from benchmarks/brought.py."""
    rows = [
        (
            f"{row['what']} ({row['package']})",
            f"`{row['task']}`",
            f"{100 * float(row['shared']):.1f} %",
            f"{int(row['float32_bytes']) / 1e6:.2f} MB",
            f"**{rate(row)}**",
            "{} ({} to {})".format(*(f"{100 * float(row[key]):.2f} %" for key in ("relative_quality", "low", "high"))),
            f"{row['verdict']} at {100 * float(row['quality_target']):.0f} %",
            f"{row['search_images']}, {row['held_out_images']}",
            f"{float(row['kl']):.4f}",
            f"{int(row['onnx_bytes']) / 1e6:.2f} MB" if row["onnx_bytes"] else "-",
            f"{float(row['onnx_difference']):.1e}" if row["onnx_bytes"] else "-",
            f"{100 * float(row['onnx_change']):.1f} %" if row["onnx_bytes"] else "-",
        )
        for row in files["brought"]
    ]
    head = (
        "network | task | parameters shared | float32 | on disk | quality kept, 95 % interval | verdict"
        " | images searched on, held out | KL | ONNX file | its answers differ by | change of the answers"
    )
    return [*table(head, rows), *measured(files["brought"])]


def gpu_stages(files: Files) -> list[str]:
    """One study on a GPU and on two cores."""
    titles = {"all": "both searches, from nothing to the verdicts"}
    rows = []
    for row in files["gpu_stages"]:
        stage = titles.get(row["stage"], f"`{row['stage']}`") + (f", `{row['search']}`" if row["search"] else "")
        rows.append((f"{stage}, s", row["gpu_seconds"], row["cpu_seconds"]))
    for row in files["gpu_stages"]:
        if row["search"]:
            other = files.search("study", row["search"])
            gpu = f"{rate(row, 'gpu_on_disk')}, {row['gpu_kl']}, {row['gpu_verdict']}"
            cpu = f"{rate(other)}, {other['kl']}, {other['verdict']}"
            rows.append((f"`{row['search']}`: on disk, KL, verdict", gpu, cpu))
    return [*table("| H200 | two cores", rows), *measured(files["gpu_stages"])]


def gpu_kernels(files: Files) -> list[str]:
    """Images a second of kernels alone on a GPU."""
    names, ways = (list(dict.fromkeys(row[key] for row in files["gpu_kernels"])) for key in ("network", "way"))
    cells = {(row["network"], row["way"]): int(row["images_per_second"]) for row in files["gpu_kernels"]}
    rows = [(way, *(f"{cells[name, way]:,}" for name in names)) for way in ways]
    return [*table(f"| {' | '.join(names)}", rows), *measured(files["gpu_kernels"])]


def intervals(files: Files) -> list[str]:
    """The worst of all worlds with so many images, for either wrong verdict."""
    rows = []
    for images in dict.fromkeys(row["images"] for row in files["intervals"]):
        worlds = [row for row in files["intervals"] if row["images"] == images]
        worst = [f"{max(column(worlds, verdict)):.4f}" for verdict in ("met", "missed")]
        rows.append((f"{int(images):,}", str(len(worlds)), *worst))
    return table('held-out images | worlds | wrongly "met", at most | wrongly "missed", at most', rows)


def means(files: Files) -> list[str]:
    """The worst world of image-wise scores with so many images, for either wrong verdict."""
    rows = []
    for images in dict.fromkeys(row["images"] for row in files["means"]):
        worlds = [row for row in files["means"] if row["images"] == images]
        worst = []
        for verdict in ("met", "missed"):
            row = max(worlds, key=lambda row: float(row[verdict]))
            worst.append(f"{float(row[verdict]):.4f} ({row['world']})")
        rows.append((f"{int(images):,}", *worst))
    return table('held-out images | wrongly "met", at most | wrongly "missed", at most', rows)


def numbers(files: Files) -> list[str]:
    """Wrong verdicts on numbers for all images."""
    rows = [
        (f"{int(row['images']):,}", row["world"], f"{float(row['met']):.4f}", f"{float(row['missed']):.4f}")
        for row in files["numbers"]
    ]
    return table('held-out images | number | wrongly "met" | wrongly "missed"', rows)


def acceptance(files: Files) -> list[str]:
    """What each rule leads to, with each number of images and target."""
    head = "images | target | confidence | met | undecided | missed | below | none accepted | mean rate on disk"
    rows = [
        (
            *(f"{int(row['images']):,}", row["target"], row["confidence"]),
            *(["refused", *[""] * 5] if row["refused"] == "1" else _chances(row)),
        )
        for row in files["acceptance"]
    ]
    return table(head, rows)


def _chances(row: dict[str, str]) -> list[str]:
    shares = (row[name] for name in ("met", "undecided", "missed", "below", "unaccepted"))
    return [*(f"{float(share):.3f}" for share in shares), f"{float(row['rate']):.2f}x"]


# Blocks of each page, by their marks.
PAGES: dict[str, dict[str, Callable[[Files], list[str]]]] = {
    "README.md": {block.__name__: block for block in (splits, beside, demo, photos)},
    "docs/benchmarks.md": {
        block.__name__: block
        for block in (
            *(
                splits,
                each_split,
                at_kl,
                targets,
                lites,
                front,
                equal,
                cerwu,
                equal_kl,
                knowledge,
                further,
                gradient,
                gradient_images,
                ablation,
                photos,
            ),
            *(clustering, inference, networks, brought, gpu_stages, gpu_kernels),
        )
    },
    "docs/exports.md": {block.__name__: block for block in (formats, compressed)},
    "docs/decoder.md": {block.__name__: block for block in (decoder_fuzz, decoder_code, decoder_speed)},
    "docs/verdict.md": {block.__name__: block for block in (intervals, means, numbers, acceptance)},
}


def rendered(page: str, blocks: dict[str, Callable[[Files], list[str]]], files: Files) -> str:
    """The text of a page with its blocks made anew; ValueError if one has no marks."""
    for name, block in blocks.items():
        head, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        if not mark or not end:
            raise ValueError(f"no block between <!-- {name} --> and <!-- end -->")
        page = f"{head}{mark}" + "\n".join(block(files)) + f"\n{end}{tail}"
    return page


def main() -> None:
    """Renew all pages."""
    files = Files()
    for name, blocks in PAGES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        path.write_text(rendered(text, blocks, files), encoding="utf-8")
        print(f"{name}: renewed")


if __name__ == "__main__":
    main()
