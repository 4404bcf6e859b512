"""Report: what a run has won, as pages to look at, as figures, as a table and as a text for the terminal.

Nothing here imports torch.

REQUIRED INPUTS:

    results/{model}/model/model.json
    results/{model}/model/weights.safetensors
    results/{model}/model/layers.json
    results/{model}/images/held_out.h5
    results/{model}/baseline/metrics.json
    results/{model}/sensitivity.csv, if a search goes by it
    all that results/{model}/search/{search}/ holds, but the dense file

OUTPUTS:

    results/{model}/report/index.html
    results/{model}/report/figures/{search}/{chart}.svg and .png
    results/report/index.html
    results/report/figures/results.svg and .png
    results/summary.txt
    results/summary.csv

"""


report: "../report/workflow.rst"


rule report_model:
    """Write a model's page, and its charts as figures for papers."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        layers="results/{model}/model/layers.json",
        held_out_images="results/{model}/images/held_out.h5",
        baseline="results/{model}/baseline/metrics.json",
        sensitivity=if_any_needs("sensitivity", "results/{model}/sensitivity.csv"),
        metrics=of_each_search("metrics.json"),
        timings=of_each_search("timings.json"),
        recipes=of_each_search("recipe.json"),
        sizes=of_each_search("sizes.json"),
        fronts=of_each_search("front.csv"),
        losses=of_each_search("losses.csv"),
        predictions=of_each_search("predictions.csv"),
        packed=of_each_search("packed.safetensors"),
    output:
        page=report(
            "results/{model}/report/index.html",
            caption="../report/model.rst",
            category="Models",
            labels={"model": "{model}", "what": "the whole report"},
        ),
        figures=report(
            directory("results/{model}/report/figures"),
            patterns=["{search}/{chart}.svg"],
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{model}",
            labels={"search": "{search}", "chart": "{chart}"},
        ),
    log:
        "results/{model}/logs/report_model.log",
    benchmark:
        "results/{model}/benchmarks/report_model.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(30),
    params:
        code=code_hash_of("report_model"),
        # The page shows it all.
        settings=settings_of(study_of_model),
        benchmarks=benchmarks_of_model,
    shell:
        "python -m wshare report_model"
        " --settings {params.settings:q}"
        " --model {wildcards.model:q}"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --layers {input.layers:q}"
        " --held-out-images {input.held_out_images:q}"
        " --baseline {input.baseline:q}"
        " --sensitivity {input.sensitivity:q}"
        " --metrics {input.metrics:q}"
        " --timings {input.timings:q}"
        " --recipes {input.recipes:q}"
        " --sizes {input.sizes:q}"
        " --fronts {input.fronts:q}"
        " --losses {input.losses:q}"
        " --predictions {input.predictions:q}"
        " --packed {input.packed:q}"
        " --benchmarks {params.benchmarks:q}"
        " --page {output.page:q}"
        " --figures {output.figures:q}"
        " > {log:q} 2>&1"


rule report_study:
    """Write the page that compares all models and searches."""
    input:
        metrics=of_each_study("metrics.json"),
    output:
        page=report(
            "results/report/index.html",
            caption="../report/study.rst",
            category="Study",
            labels={"model": "all models", "what": "comparison"},
        ),
        figures=directory("results/report/figures"),
    log:
        "results/logs/report_study.log",
    benchmark:
        "results/benchmarks/report_study.tsv"
    localrule: True
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(30),
    params:
        code=code_hash_of("report_study"),
    shell:
        "python -m wshare report_study"
        " --metrics {input.metrics:q}"
        " --page {output.page:q}"
        " --figures {output.figures:q}"
        " > {log:q} 2>&1"


rule summarise:
    """Write the block that a run ends with, and the same as a table."""
    input:
        metrics=of_each_study("metrics.json"),
        timings=of_each_study("timings.json"),
        recipes=of_each_study("recipe.json"),
        baselines=[f"results/{model}/baseline/metrics.json" for model, _ in studies(config)],
    output:
        summary="results/summary.txt",
        table=report(
            "results/summary.csv",
            caption="../report/summary.rst",
            category="Study",
            labels={"model": "all models", "what": "table"},
        ),
    log:
        "results/logs/summarise.log",
    benchmark:
        "results/benchmarks/summarise.tsv"
    localrule: True
    conda:
        "../../envs/numpy.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(30),
    params:
        code=code_hash_of("summarise"),
    shell:
        "python -m wshare summarise"
        " --metrics {input.metrics:q}"
        " --timings {input.timings:q}"
        " --recipes {input.recipes:q}"
        " --baselines {input.baselines:q}"
        " --summary {output.summary:q}"
        " --summary-table {output.table:q}"
        " > {log:q} 2>&1"
