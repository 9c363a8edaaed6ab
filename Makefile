# The doors of the house. `make demo` needs nothing but make, git and Python 3.11; what else is missing it names and installs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export LC_ALL := C.UTF-8

BIN := $(CURDIR)/.venv/bin
PLAY := $(BIN)/ansible-playbook --inventory inventory/local

# The checks have an environment of their own, provisioned by the roles under test; yours is not touched.
TEST_WORK := $(CURDIR)/.cache/test
TEST_ENV := $(TEST_WORK)/env/native
TEST_PYTHON := $(TEST_ENV)/bin/python
TEST_STAMP := $(TEST_ENV)/.test-tools

.PHONY: help demo test lint pytest molecule toyworld clean control-node dev-tools

help:
	@echo 'make demo      provision, train and draw on this machine with the embedded model; results in artifacts/demo/'
	@echo 'make test      lint, then all tests'
	@echo 'make lint      ansible-lint, yamllint, shellcheck, ruff, mypy'
	@echo 'make toyworld  train the embedded model again (up to 90 minutes)'
	@echo 'make clean     remove what make made, but for artifacts/'

# The demo may be typed again and again, so it allows its own run to be overwritten; a bare train.yml does not.
demo: control-node
	$(PLAY) provision.yml
	$(PLAY) train.yml -e training_overwrite=true
	$(PLAY) generate.yml
	@echo
	@echo 'Look at artifacts/demo/: images/ (contact_sheet.png first), learned_embeds.safetensors, metrics.jsonl'

test: lint molecule pytest

lint: dev-tools $(TEST_STAMP)
	PATH="$(BIN):$$PATH" ansible-lint
	$(BIN)/yamllint --strict .
	$(BIN)/shellcheck $$(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
	$(BIN)/ruff check python tests
	$(BIN)/ruff format --check python tests
	cd python && $(TEST_PYTHON) -m mypy

molecule: dev-tools $(TEST_STAMP)
	PATH="$(BIN):$$PATH" molecule test --all

pytest: dev-tools $(TEST_STAMP)
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -q tests
	cd python && PATH="$(TEST_ENV)/bin:$$PATH" $(TEST_PYTHON) -m pytest

toyworld: control-node $(TEST_STAMP)
	$(TEST_PYTHON) python/make_toyworld.py --out toyworld

clean:
	rm --recursive --force .venv .cache .ansible
	find . -name __pycache__ -o -name .pytest_cache -o -name .mypy_cache -o -name .ruff_cache | xargs --no-run-if-empty rm --recursive

control-node:
	@scripts/control-node.sh requirements.txt

dev-tools:
	@scripts/control-node.sh requirements-dev.txt

$(TEST_STAMP): roles/python_env/files/native.txt requirements-test.txt | dev-tools
	$(PLAY) provision.yml --tags python_env,gperftools,intel_mpi -e work_dir=$(TEST_WORK)
	$(TEST_PYTHON) -m pip install --quiet --no-deps --require-hashes --requirement requirements-test.txt
	touch $@
