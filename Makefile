# The first that there is and that works: a shim of pyenv may stand for a version that is not installed.
PYTHON ?= $(shell for version in 3.11 3.12 3.13; do \
	python$$version -c '' 2> /dev/null && echo python$$version && break; done)
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
# Tests side by side.
WORKERS ?= auto
ATHERIS := 3.0.0
ONNXRUNTIME_WEB := 1.30.0
# Of fuzzing, for each of four targets.
FUZZ_SECONDS ?= 150
# Of mutation, for each module.
MUTANTS ?= 20

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-cluster test-browser docs fuzz fuzz-decoder decoder-js mutation lint lock clean

help: ## List the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.installed ## Create .venv and install the pinned dependencies.

# The stamp comes last: an installation that was cut off is taken up again.
$(VENV)/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "none of python3.11, python3.12, python3.13 works; set PYTHON=<path>"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## Compress the networks of config/config.yaml, from nothing to the verdict.
	$(BIN)/snakemake --cores $(CORES)

test: setup ## Run all checks, and all tests but those of clusters and browsers; prints which lines and branches ran.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered

test-fast: setup ## Run the unit tests, without those that take long.
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal -m "not slow" tests/unit

# An environment of its own, laid over .venv: with the Slurm plugin installed every start of Snakemake asks for Slurm.
test-cluster: setup ## Run the small study through Slurm and a submit command on this machine; installs Slurm.
	tests/cluster/install_slurm.sh
	$(PYTHON) -m venv $(VENV)/cluster
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		> "$$($(VENV)/cluster/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	$(VENV)/cluster/bin/python -m pip install --quiet --requirement tests/cluster/requirements.txt \
		--constraint requirements.txt
	$(VENV)/cluster/bin/python -m pytest tests/cluster

# atheris is no requirement of anything else: it lives in an environment of its own beside .venv.
fuzz: setup ## Fuzz the readers of packed and model files for ten minutes.
	$(PYTHON) -m venv .cache/fuzz/venv
	.cache/fuzz/venv/bin/python -m pip install --quiet atheris==$(ATHERIS)
	for target in model sealed hashed packed; do \
		PYTHONPATH=workflow:.:$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		.cache/fuzz/venv/bin/python -m tests.fuzz $$target .cache/fuzz/$$target \
			-max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.cache/fuzz/$$target- || exit 1; done

# Ten minutes, unless FUZZ_SECONDS is given.
fuzz-decoder: FUZZ_SECONDS := $(if $(filter file,$(origin FUZZ_SECONDS)),600,$(FUZZ_SECONDS))
fuzz-decoder: setup ## Fuzz the decoder in C with sanitizers, for ten minutes; needs clang.
	PYTHONPATH=workflow:. $(BIN)/python -m tests.decoder.seeds .cache/fuzz/decoder
	clang -std=c99 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all decoder/fuzz.c \
		-o .cache/fuzz/decoder.program
	.cache/fuzz/decoder.program .cache/fuzz/decoder -max_total_time=$(FUZZ_SECONDS) -timeout=5 -rss_limit_mb=2000 \
		-max_len=20000 -artifact_prefix=.cache/fuzz/decoder-

decoder-js: ## Compile the decoder in C for WebAssembly into decoder/wshare.js; needs clang and lld.
	$(PYTHON) decoder/wasm/build.py

mutation: setup ## Change the code in one place after another, and list the changes that no unit test sees; takes hours.
	nice $(BIN)/python -m tests.mutation --sample $(MUTANTS)

docs: setup ## Build the documents into site/, to be read without a network.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-browser: setup ## Run the reports and the decoder in a headless browser; installs what it needs on Debian.
	tests/browser/install_chromium
	npm install --silent --no-save --no-package-lock --prefix decoder/page onnxruntime-web@$(ONNXRUNTIME_WEB)
	$(BIN)/python -m pip install --quiet --requirement tests/browser/requirements.txt
	$(BIN)/pytest tests/browser

lock: ## Resolve requirements.in into requirements.txt again.
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet pip-tools
	$(VENV)/lock/bin/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host requirements.in
	# The CUDA libraries that torch names exist for Linux only.
	sed -E -i 's/^((cuda|nvidia|triton)[^ ;]*==[^ ;]+)$$/\1 ; sys_platform == "linux"/' requirements.txt

clean: ## Remove results and caches, but not .venv.
	rm -rf results/* site .snakemake .cache
