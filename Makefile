PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-browser lint lock clean

help: ## List the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.installed ## Create .venv and install the pinned dependencies.

# The stamp comes last: an installation that was cut off is taken up again.
$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## Compress the networks of config/config.yaml, from nothing to the verdict.
	$(BIN)/snakemake --cores $(CORES)

test: setup ## Run all checks and tests.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/pytest

test-browser: setup ## Look at the reports with a headless browser; installs Debian's chromium if there is none.
	tests/browser/install_chromium
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
	rm -rf results/* .snakemake .cache
