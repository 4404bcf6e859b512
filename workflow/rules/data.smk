"""Images: decoded once in the network's geometry, split into search and held-out.

Two files, so that a rule that chooses something has no way to look at held-out images.

REQUIRED INPUTS:

    the dataset of the configuration
    results/{model}/model/model.json

OUTPUTS:

    results/{model}/images/search.h5
    results/{model}/images/held_out.h5
    results/{model}/images/calibration.h5, of a dataset that names images for calibration

"""


rule prepare_images:
    """Decode, split and store the images."""
    input:
        spec="results/{model}/model/model.json",
    output:
        search_images="results/{model}/images/search.h5",
        held_out_images="results/{model}/images/held_out.h5",
    log:
        "results/{model}/logs/prepare_images.log",
    benchmark:
        "results/{model}/benchmarks/prepare_images.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        code=code_hash_of("prepare_images"),
        settings=settings_of("seed", "datasets.{dataset}.*", "!calibration"),
    shell:
        "python -m wshare prepare_images"
        " --settings {params.settings:q}"
        " --spec {input.spec:q}"
        " --search-images {output.search_images:q}"
        " --held-out-images {output.held_out_images:q}"
        " > {log:q} 2>&1"


rule prepare_calibration:
    """Decode and store images that add to the calibration statistics alone."""
    input:
        spec="results/{model}/model/model.json",
        search_images="results/{model}/images/search.h5",
        held_out_images="results/{model}/images/held_out.h5",
    output:
        calibration_images="results/{model}/images/calibration.h5",
    log:
        "results/{model}/logs/prepare_calibration.log",
    benchmark:
        "results/{model}/benchmarks/prepare_calibration.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        code=code_hash_of("prepare_calibration", images=calibration_source),
        settings=settings_of(
            "seed",
            "datasets.{dataset}.*",
            *("!split", "!held_out", "!labels", "!class_map"),
        ),
    shell:
        "python -m wshare prepare_calibration"
        " --settings {params.settings:q}"
        " --spec {input.spec:q}"
        " --search-images {input.search_images:q}"
        " --held-out-images {input.held_out_images:q}"
        " --calibration-images {output.calibration_images:q}"
        " > {log:q} 2>&1"
