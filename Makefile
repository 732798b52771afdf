PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench browser clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Penlight needs Python 3.11 or newer; say make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/full: $(VENV)/base
	$(PIP) -e '.[torchvision,timm,test]'
	@touch $@

$(VENV)/bench: $(VENV)/full
	$(PIP) -e '.[bench]'
	@touch $@

install: $(VENV)/full  ## make .venv with everything

demo: $(VENV)/base  ## open the specimens, ask everything of every unit, write the sites (demo/index.html)
	@$(BIN)/penlight demo --out demo

browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else echo "the browser tests need Chromium: install the package 'chromium'"; fi

lint: $(VENV)/full  ## ruff and mypy
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

test: $(VENV)/full browser lint  ## install what the tests need, run all of them
	$(BIN)/python -m pytest

bench: $(VENV)/bench  ## every benchmark, in its quick form
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

clean:  ## remove .venv, the demo and caches
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache
