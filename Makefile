# make demo | up | test | test-full | lint | check | gpu | openapi | lock | coverage | clean
#
# Each target makes .venv and installs what is missing first. PYTHON names the interpreter that .venv is made with; TORCH_ARGS are
# further arguments for pip when it installs torch, for example an index of CPU wheels:
#   make demo PYTHON=python3.12 TORCH_ARGS='--index-url URL-OF-CPU-WHEELS'

PYTHON ?= python3
TORCH_ARGS ?=
TORCH_VERSION := 2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PHASE := scripts/phase
INSTALLED := $(VENV)/.installed

# Modules are compiled where they are first used, most of what is installed never: each process reads what others wrote.
export PYTHONDONTWRITEBYTECODE :=

# The checks reach no model hub.
TEST_ENV := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q
# Two test processes share two cores, half the modules each, and load no plugin that only the contract tests need.
UNITS := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist worksteal -p no:schemathesis -m "not slow" tests/unit
# These wait for servers that start; each of two keeps to one thread of its own, and what a test starts takes what it is set to.
RESTS := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist worksteal
SUITES := tests/integration tests/contract tests/faults
SOURCES := server worker benchmarks clients/python/src scripts deploy tests

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help install demo up test test-unit test-rest test-full lint lint-quick lint-format lint-ruff lint-types lint-imports lint-tenants check check-rest gpu openapi lock coverage clean

help:
	@sed -n '1,6s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED)

demo: install
	@$(PHASE) demo $(BIN)/kmserve demo

up: install
	@$(BIN)/kmserve up

test: test-unit test-rest

test-unit: install
	@$(PHASE) "unit tests" env $(UNITS)

test-rest: install
	@$(PHASE) "integration, contract and fault tests" env $(RESTS) -m "not slow" --durations=10 $(SUITES)

test-full: test-unit
	@$(PHASE) "slow unit tests" env $(PYTEST) -m slow tests/unit
	@$(PHASE) "all other tests, slow ones included" env $(PYTEST) --durations=20 $(SUITES)

# `make -k lint` goes on after a failure.
lint: lint-quick lint-types

lint-quick: lint-format lint-ruff lint-imports lint-tenants

lint-format: install
	@$(PHASE) "ruff format" $(BIN)/ruff format --check .

lint-ruff: install
	@$(PHASE) "ruff check" $(BIN)/ruff check .

lint-types: install
	@$(PHASE) "mypy" $(BIN)/mypy $(SOURCES)

lint-imports: install
	@$(PHASE) "import contracts" $(BIN)/lint-imports --no-cache

lint-tenants: install
	@$(PHASE) "tenant lint" $(BIN)/python -m scripts.lint_tenant

check: install
	@$(PHASE) "all checks" $(MAKE) --no-print-directory lint-quick test-unit check-rest

# The suites wait much for servers that start: mypy computes meanwhile.
check-rest: install
	@scripts/beside $(MAKE) --no-print-directory lint-types -- $(MAKE) --no-print-directory test-rest

# The figures of docs/gpu.md, on a machine with a GPU; the last four where FAIRYTALEQA names the data set's folder.
gpu: install
	@$(PHASE) "exactness on CUDA" env KMSERVE_TEST_DEVICE=cuda $(PYTEST) tests/unit/server/engine/test_engine_exactness.py
	@$(PHASE) "speed of serving" $(BIN)/python -m benchmarks.serving --suite full --device cuda --json serving-gpu.json
	@$(PHASE) "demo" env KMSERVE_DEVICE=cuda $(BIN)/kmserve demo
	@test -z "$(FAIRYTALEQA)" || $(PHASE) "closed book" env KMSERVE_DEVICE=cuda $(BIN)/python -m benchmarks.closed_book \
		--data "$(FAIRYTALEQA)" --split val --stories 23 --preset paper --json closed-book-gpu.json
	@test -z "$(FAIRYTALEQA)" || $(PHASE) "reader" $(BIN)/python -m worker.extractor --device cuda --dataset fairytaleqa \
		--data "$(FAIRYTALEQA)" --documents 64 --most-tokens 4000 --passage-tokens 64 --out gpu/reader
	@test -z "$(FAIRYTALEQA)" || $(PHASE) "extractor" $(BIN)/python -m worker.extractor --device cuda --dataset fairytaleqa \
		--data "$(FAIRYTALEQA)" --documents 64 --most-tokens 4000 --passage-tokens 64 --modules mixed --preset standard \
		--start gpu/reader/attempt-1/artefact --recipe '{"unanswerable": 0.0}' --out gpu/extractor
	@test -z "$(FAIRYTALEQA)" || $(PHASE) "the paper's table" $(BIN)/python -m worker.evaluation --device cuda --dataset fairytaleqa \
		--data "$(FAIRYTALEQA)" --passage-tokens 64 --preset standard --rows all --extractor gpu/extractor/attempt-1/artefact --out gpu/table

openapi: install
	@$(BIN)/python -m server.openapi > docs/openapi.json

lock: install
	@$(BIN)/python -m scripts.lock

coverage: install
	@$(TEST_ENV) OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -q -m "not slow" tests/unit
	@$(BIN)/python -m coverage report

clean:
	rm -rf $(VENV) build dist *.egg-info clients/python/src/*.egg-info .coverage
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find server worker benchmarks clients scripts deploy tests -name __pycache__ -prune -exec rm -rf {} +

# Three steps, each with a stamp, so that nothing is installed twice.

$(BIN)/python:
	@$(PHASE) "virtual environment" scripts/venv.sh $(PYTHON) $(VENV)

$(VENV)/.torch-$(TORCH_VERSION): | $(BIN)/python
	@$(PHASE) "install torch" $(PIP) install --no-compile $(TORCH_ARGS) torch==$(TORCH_VERSION)
	@touch $@

$(VENV)/.locked: requirements.lock $(VENV)/.torch-$(TORCH_VERSION)
	@$(PHASE) "install requirements.lock" scripts/install_locked.sh $(BIN)/python
	@touch $@

$(INSTALLED): pyproject.toml clients/python/pyproject.toml $(VENV)/.locked
	@$(PHASE) "install kmserve" $(PIP) install --quiet --no-deps --no-build-isolation -e . -e clients/python
	@touch $@
