"""Report: what a run has won, as pages to look at, as figures, as a table and as a text for the terminal.

Needs all results of the searches. Leaves `results/<model>/report/` for each model, `results/report/` for the study,
`results/summary.txt` and `summary.csv`. Nothing here imports torch.
"""


report: "../report/workflow.rst"


rule report_model:
    """Write a model's page, and its charts as figures for papers."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        layers="results/{model}/model/layers.json",
        images="results/{model}/images/held_out.h5",
        baseline="results/{model}/baseline/metrics.json",
        searched=searched_files,
        sensitivity=sensitivity_table,
        metrics=metrics_files,
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
    params:
        code=code_hash_of("report_model"),
        settings=settings_of("report_model"),
        layers_per_job=config["sensitivity"]["layers_per_job"],
    shell:
        "python -m wshare report_model --settings {params.settings:q} --model {wildcards.model:q}"
        " --metrics {input.metrics:q} --layers-per-job {params.layers_per_job}"
        " --page {output.page:q} --figures {output.figures:q} > {log:q} 2>&1"


rule report_study:
    """Write the page that compares all models and searches."""
    input:
        metrics=[f"results/{model}/search/{search}/metrics.json" for model, search in studies(config)],
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
    conda:
        "../../envs/report.yaml"
    params:
        code=code_hash_of("report_study"),
    shell:
        "python -m wshare report_study --metrics {input.metrics:q}"
        " --page {output.page:q} --figures {output.figures:q} > {log:q} 2>&1"


rule summarise:
    """Write the block that a run ends with, and the same as a table."""
    input:
        metrics=[f"results/{model}/search/{search}/metrics.json" for model, search in studies(config)],
        baseline=sorted({f"results/{model}/baseline/metrics.json" for model, _ in studies(config)}),
        recipes=[f"results/{model}/search/{search}/recipe.json" for model, search in studies(config)],
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
    conda:
        "../../envs/numpy.yaml"
    params:
        code=code_hash_of("summarise"),
    shell:
        "python -m wshare summarise --metrics {input.metrics:q} --baseline {input.baseline:q}"
        " --summary {output.summary:q} --table {output.table:q} > {log:q} 2>&1"
