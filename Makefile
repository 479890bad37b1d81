# dsgan_datasets: `make` or `make help` lists the targets.
#
# Everything runs in .venv, which the targets create and update by themselves. Stamp files record when that was last done:
# a changed setup.py, constraints.txt or list of frameworks repeats it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The interpreter that creates .venv; if empty, the first working Python 3.11 to 3.14 on PATH.
PYTHON ?=
PYTEST_ARGS ?=
# Two processes; a file's tests run in one of them, in order. A test that ends its process is tried in two more.
PARALLEL := -n 2 --dist loadfile --max-worker-restart 2
GOLDEN ?=

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input --retries 10
# Sources are built with the pinned setuptools of .venv, not with whatever is newest today.
# The warning is setuptools' general advice about editable installations; the tests show that ours work.
INSTALL := PYTHONWARNINGS="ignore:Editable installation" $(PIP) install --quiet --no-build-isolation -c constraints.txt
FRAMEWORKS := tools/install.py $(wildcard tools/frameworks/*.txt)

.PHONY: help demo docs links lint test test-fast test-extended test-golden release-check clean

help:  ## list the targets
	@echo "Targets (PYTHON=... chooses the interpreter, Python 3.11 to 3.14):"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(VENV)/.stamp-run  ## install, then write a preview sheet and small shards of labeled faces into demo-out/
	@mkdir -p demo-out && rm -rf demo-out/shards
	.venv/bin/dsgan info demo-faces-128
	.venv/bin/dsgan preview demo-faces-128 --out demo-out/preview.png
	.venv/bin/dsgan shards write demo-faces-128 demo-out/shards --num-samples 100 --samples-per-shard 50
	.venv/bin/dsgan shards verify demo-out/shards
	@echo; echo "Labeled faces to look at:  $(CURDIR)/demo-out/preview.png"; echo "A small WebDataset:         $(CURDIR)/demo-out/shards"

# Scripts import each other by bare name, and helpers of the tests; what they call is checked, as little else runs the long ones.
SCRIPTS := --follow-imports silent --no-warn-return-any --no-warn-unused-ignores
lint: $(VENV)/.stamp-dev links  ## ruff (rules and format), mypy, import-linter (layers and circles), and the website
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m mypy
	MYPYPATH=demo:benchmarks:tests .venv/bin/python -m mypy $(SCRIPTS) demo benchmarks
	.venv/bin/lint-imports
	@$(MAKE) --no-print-directory docs

docs: $(VENV)/.stamp-dev links  ## the website, into site/: fails at broken links, anchors and references; needs no network
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict  # --quiet would hide warnings from --strict, too

# Installing puts adapters/ and tools/ into the package (setup.py); mypy, import-linter and mkdocs do not look at installations.
LINKS := dsgan_datasets/adapters dsgan_datasets/tools
links: $(LINKS)  ## links (not in git) that show static tools, and a PYTHONPATH, the package as it is installed

$(LINKS):
	ln -s ../$(@F) $@

test: $(VENV)/.stamp-test links  ## the tests, under 12 minutes on two cores; installs the frameworks (PYTEST_ARGS="-k name")
	.venv/bin/python -m pytest $(PARALLEL) -m "not extended" $(PYTEST_ARGS)

test-fast: $(VENV)/.stamp-test links  ## what is quick, under 3 minutes: for use while editing
	.venv/bin/python -m pytest $(PARALLEL) -m "not extended and not slow and not frameworks" $(PYTEST_ARGS)

test-extended: $(VENV)/.stamp-test links  ## what takes long and rarely breaks, under 20 minutes
	.venv/bin/python -m pytest $(PARALLEL) -m extended $(PYTEST_ARGS)

test-golden: $(VENV)/.stamp-run  ## compare with reference arrays from elsewhere: make test-golden GOLDEN="dir dir"
	@[ -n "$(GOLDEN)" ] || { echo "pass the folders of the reference arrays: make test-golden GOLDEN=\"dir dir\"" >&2; exit 2; }
	.venv/bin/python tests/compare_golden.py $(GOLDEN)

release-check: $(VENV)/.stamp-dev  ## build archive and wheel into dist/, check them, and run the wheel in a fresh environment
	$(INSTALL) -e ".[release]"
	rm -rf dist && $(VENV)/bin/python -m build --no-isolation --outdir dist
	$(VENV)/bin/python -m twine check --strict dist/*
	@version=$$($(VENV)/bin/dsgan --version | cut -d' ' -f2); \
	grep -q "^## $${version%%.dev*}" CHANGELOG.md || { echo "CHANGELOG.md has no section $${version%%.dev*}" >&2; exit 1; }; \
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(VENV)/bin/python -m venv "$$fresh/env"; \
	"$$fresh/env/bin/python" -m pip --disable-pip-version-check install --quiet -c constraints.txt dist/*.whl; \
	cd "$$fresh"; [ "$$(env/bin/dsgan --version)" = "dsgan $$version" ]; \
	env/bin/dsgan info demo-faces >/dev/null; env/bin/dsgan preview demo-faces --num-samples 2 --device cpu; \
	echo "$$version works from its wheel in a fresh environment"

clean:  ## remove .venv, caches, build artifacts and demo-out/
	rm -rf .venv $(LINKS) demo-out site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A version manager's shim may be on PATH and still fail: each candidate is run, not only found.
$(VENV)/.stamp-venv:
	@works() { "$$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }; \
	python=""; \
	if [ -n "$(PYTHON)" ]; then \
	    works "$(PYTHON)" && python="$(PYTHON)" || { echo "PYTHON=$(PYTHON) does not run, is not Python 3.11 to 3.14, or lacks venv" >&2; exit 1; }; \
	else \
	    while read -r candidate; do if works "$$candidate"; then python="$$candidate"; break; fi; done \
	        < <(type -aP python3.11 python3.12 python3.13 python3.14 python3 python || true); \
	    [ -n "$$python" ] || { echo "no working Python 3.11 to 3.14 with venv on PATH: install one, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	fi; \
	echo "making $(VENV) with $$python ($$("$$python" --version))"; \
	rm -rf $(VENV); "$$python" -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt pip setuptools wheel
	@touch $@

# Says what comes before it comes, as long as PyTorch is not there: $(1) to download, $(2) on disk. Measured on Linux, where
# PyTorch from PyPI brings CUDA along.
define announce
@compgen -G "$(VENV)/lib/python*/site-packages/torch" >/dev/null || echo "installing into $(VENV): up to $(1) of downloads, \
$(2) on disk, most of it CUDA for PyTorch; docs/install.md says how to do without. pip uses your configuration (pip config list)"
endef

$(VENV)/.stamp-run: $(VENV)/.stamp-venv setup.py constraints.txt
	$(call announce,3.1 GB,5.5 GB)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-venv setup.py constraints.txt
	$(call announce,3.2 GB,5.8 GB)
	$(INSTALL) -e ".[dev,docs]"
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-venv setup.py constraints.txt $(FRAMEWORKS)
	$(call announce,3.9 GB,7.5 GB)
	$(INSTALL) -e ".[test,docs,annotate,clusters,coco,detectron2,http,hub,huggingface,lightning,mmseg,pictures,ray,s3,ultralytics,view,webdataset]"
	$(VENV)/bin/dsgan install detectron2 mmseg ultralytics
	@touch $@
