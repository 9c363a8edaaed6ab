# Entry points. `make demo` needs only make, git and Python 3.11 to 3.13; it names and installs everything else that is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export LC_ALL := C.UTF-8
# Environments are compiled to bytecode at first use, not at installation. If that were forbidden, it would happen at each use.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(CURDIR)/.venv/bin
PLAY := $(BIN)/ansible-playbook --inventory inventory/local

# Tests have their own environment, provisioned by the roles under test; yours is not changed.
TEST_WORK := $(CURDIR)/.cache/test
TEST_ENV := $(TEST_WORK)/env/native
TEST_PYTHON := $(TEST_ENV)/bin/python
TEST_STAMP := $(TEST_ENV)/.test-tools
BENCH_PRELOAD := --preload $(TEST_ENV)/lib/libiomp5.so:$(TEST_WORK)/lib/native/libtcmalloc.so

# A lab: hosts on this machine, to try a cluster interactively.
LAB := $(BIN)/python molecule/lab/lab.py
HOSTS := 4
NAME := try

# The longest first, so that only short ones remain at the end.
SCENARIOS := $(addprefix molecule-,default ipex scale slurm access)

.PHONY: $(SCENARIOS) kernels faults hostile settings help demo test lint lint-files lint-types pytest pytest-playbooks pytest-python molecule bench bench-attention bench-activations bench-front bench-ops bench-pictures bench-sdxl bench-step bench-toy bench-unet lab lab-down toyworld toyworld-xl clean control-node dev-tools lab-tools browser quickstart-test collection sanity execution-environment outdated

help:
	@echo 'make demo      provision, train and generate on this machine with the embedded model; results in artifacts/demo/'
	@echo 'make test      lint, then all tests'
	@echo 'make lint      ansible-lint, yamllint, shellcheck, ruff, mypy'
	@echo 'make hostile   give the programs 500 inputs, most of them bad, and print what they say of each (10 minutes)'
	@echo 'make settings  write role defaults, argument_specs and docs/settings.md from python/sdtune/settings'
	@echo 'make bench     measure the training engine on Stable Diffusion 1.5 (10 minutes, 6 GB of disk in ~/.cache)'
	@echo 'make bench-toy measure it on the embedded model (2 minutes)'
	@echo 'make bench-sdxl  measure it at the shapes of Stable Diffusion XL (an hour, 20 GB of memory and of disk)'
	@echo 'make bench-activations  what a step of Stable Diffusion XL holds for its backward pass, by blocks (seconds)'
	@echo 'make bench-attention  measure attention alone, at the shapes of Stable Diffusion 1.5 (one minute)'
	@echo 'make bench-step  profile a training step: time, share and rate of each operation (5 minutes)'
	@echo 'make bench-ops  measure each fused operation against plain torch and torch.utils.checkpoint (10 minutes)'
	@echo 'make bench-pictures  measure image generation on the embedded model'
	@echo 'make bench-front  the front of time against similarity, from what bench-pictures wrote'
	@echo 'make bench-unet  profile the UNet of an OpenVINO copy'
	@echo 'make toyworld  train the embedded model again (up to 90 minutes)'
	@echo 'make toyworld-xl  train the embedded model in the layout of Stable Diffusion XL (35 minutes)'
	@echo 'make lab       $(HOSTS) hosts on this machine, to try a cluster interactively (HOSTS=2, NAME=other); make lab-down removes them'
	@echo 'make quickstart-test  run the cluster commands of README.md in a lab, on a clean clone (15 minutes)'
	@echo 'make collection  the same as a collection for ansible-galaxy, in .cache/collection; make execution-environment  for AWX'
	@echo 'make sanity    the tests that Ansible has for collections, of the built and installed one (5 minutes)'
	@echo 'make outdated  which packages have newer versions, and what holds each back'
	@echo 'make clean     remove what make created, except artifacts/'

# The demo can be repeated, so it allows its own run to be overwritten; train.yml alone does not.
demo: control-node
	$(PLAY) provision.yml
	$(PLAY) train.yml -e training_overwrite=true
	$(PLAY) generate.yml
	@echo
	@echo 'Open artifacts/demo/report.html: the report of the run. Beside it: images/, learned_embeds.safetensors, metrics.jsonl'

# Two parallel lanes, so that both cores have work: a scenario often waits for hosts, and the environment of the tests is installed while
# ansible-lint runs. The target that is parallel by itself is last.
# What failed is printed again at the end, since output of the other lane follows it, and pytest's counts after that.
test: dev-tools lab-tools browser
	@mkdir --parents .cache; rm --force .cache/*.log; status=0; \
	$(MAKE) --keep-going --jobs=2 --output-sync=line lint molecule pytest 2>&1 | tee .cache/test.log || status=$$?; \
	{ grep --extended-regexp 'CRITICAL|^(FAILED|ERROR) |\*\*\* \[' .cache/test.log || true; } | cut --characters=1-300 | tail --lines=40; \
	tail --quiet --lines=1 .cache/pytest-*.log; exit $$status

lint: lint-files lint-types

lint-files: dev-tools
	@test $(words $(SCENARIOS)) -eq $$(ls molecule/*/molecule.yml | wc --lines) || { echo 'SCENARIOS in Makefile lacks one of molecule/' >&2; exit 1; }
	PATH="$(BIN):$$PATH" ansible-lint
	$(BIN)/yamllint --strict .
	$(BIN)/shellcheck $$(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
	$(BIN)/ruff check python plugins roles tests molecule scripts
	$(BIN)/ruff format --check python plugins roles tests molecule scripts
	cd python && $(BIN)/python -m sdtune.settings --check

lint-types: dev-tools $(TEST_STAMP)
	cd python && $(TEST_PYTHON) -m mypy
	$(TEST_PYTHON) -m mypy --strict molecule/lab/lab.py molecule/lab/mirror.py
	$(TEST_PYTHON) -m mypy --strict --python-executable $(BIN)/python scripts/play.py

# What users have or type wrongly, and what is said of it. HOSTILE_ARGS='--before CHECKOUT' asks an older version too.
hostile: dev-tools $(TEST_STAMP)
	cd python && $(TEST_PYTHON) -m tests.hostile $(HOSTILE_ARGS)

# What is generated from the one declaration of every setting: role defaults, argument_specs, docs/settings.md. Lint compares.
settings: control-node
	cd python && $(BIN)/python -m sdtune.settings

molecule: $(SCENARIOS)

# molecule takes "Missing playbook" for success.
$(SCENARIOS): molecule-%: dev-tools lab-tools $(TEST_STAMP)
	PATH="$(BIN):$$PATH" molecule test --scenario-name $* 2>&1 | tee .cache/molecule-$*.log
	! grep 'Missing playbook' .cache/molecule-$*.log

pytest: pytest-python pytest-playbooks

pytest-playbooks: dev-tools lab-tools kernels $(TEST_STAMP)
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -q --durations=20 --numprocesses auto --dist loadfile --no-loadscope-reorder tests 2>&1 \
	| tee .cache/pytest-playbooks.log

# In a network of their own, with loopback only: the playbooks that are tested meanwhile do not see the runs of these tests on the host.
pytest-python: dev-tools lab-tools browser kernels $(TEST_STAMP)
	cd python && PATH="$(TEST_ENV)/bin:$$PATH" unshare --net bash -c 'ip link set dev lo up && exec "$$@"' - \
	$(TEST_PYTHON) -m pytest --durations=20 2>&1 | tee ../.cache/pytest-python.log

lab: dev-tools lab-tools
	@$(LAB) up $(NAME) --hosts $(HOSTS) --mirror

# All faults of docs/reliability.md, on two hosts of a lab. Not in CI: they take a quarter of an hour.
faults: dev-tools lab-tools
	@$(LAB) up faults --hosts 2 --mirror
	PATH="$(BIN):$$PATH" ansible-playbook -i inventory/lab-faults provision.yml
	PATH="$(BIN):$$PATH" $(BIN)/python molecule/faults/faults.py faults --all
	PATH="$(BIN):$$PATH" $(BIN)/python molecule/faults/kills.py faults --kills 15
	@$(LAB) down faults

lab-down:
	@$(LAB) down $(NAME)

quickstart-test: dev-tools lab-tools
	HOSTS=$(HOSTS) $(BIN)/python tests/quickstart.py

toyworld: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) -m toyworld.make --out ../toyworld

# In the layout of Stable Diffusion XL, with toyworld's VAE and concept.
toyworld-xl: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) -m toyworld.make --layout sdxl --vae ../toyworld/model/vae --unet-steps 4000 --out ../toyworld/xl

# Benchmarks, not tests. BENCH_ARGS='--ipex-python PATH' also measures an environment of the stack ipex.
bench: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/training_step.py $(BENCH_PRELOAD) $(BENCH_ARGS)

bench-toy: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/training_step.py --toyworld $(BENCH_PRELOAD) $(BENCH_ARGS)

bench-sdxl: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/training_step.py --sdxl $(BENCH_PRELOAD) $(BENCH_ARGS)

bench-activations: $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/activations.py $(BENCH_ARGS)

bench-attention: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/attention.py $(BENCH_ARGS)

bench-step: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/step_profile.py $(BENCH_ARGS)

bench-ops: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/ops.py $(BENCH_ARGS)

# Seconds and similarity of pictures. BENCH_ARGS='--size 256 --steps 4' for the shapes of Stable Diffusion 1.5 in place of the embedded model.
bench-pictures: control-node kernels $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/generation.py $(or $(BENCH_ARGS),--toyworld)

# BENCH_ARGS='SECONDS.json SIMILARITY.json --plot ../docs/pictures-front.svg': figures of two sweeps, absolute or from python/.
bench-front: $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/front.py $(BENCH_ARGS)

# BENCH_ARGS='FOLDER/run/openvino --ways', of bench-pictures with --keep FOLDER.
bench-unet: $(TEST_STAMP)
	cd python && $(TEST_PYTHON) bench/unet_profile.py $(BENCH_ARGS)

# With the compiled kernels inside, so that its users need no compiler.
collection: control-node
	$(BIN)/python python/sdtune/ops/kernels/build.py
	scripts/collection.sh $(BIN)/ansible-galaxy .cache/collection

# ansible-test fetches its own linters. What it may find is in tests/sanity, a file for each ansible-core. Outside of this clone, since
# it skips what git ignores.
sanity: dev-tools
	folder=$$(mktemp --directory); trap 'rm --recursive --force "$$folder"' EXIT; \
	scripts/collection.sh $(BIN)/ansible-galaxy "$$folder"; \
	$(BIN)/ansible-galaxy collection install --offline --collections-path "$$folder" "$$folder"/*.tar.gz; \
	cd "$$folder/ansible_collections/sdtune/sdtune"; \
	PATH="$(BIN):$$PATH" ansible-test sanity --python "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

# What a container engine builds: docs/platforms.md
execution-environment: dev-tools collection
	cp .cache/collection/sdtune-sdtune-*.tar.gz execution-environment/sdtune.tar.gz
	cd execution-environment && $(BIN)/ansible-builder create --context ../.cache/execution-environment

# Of the control node, then of the stack native.
outdated: dev-tools $(TEST_STAMP)
	$(BIN)/python scripts/outdated.py --notes scripts/held.txt
	$(TEST_PYTHON) scripts/outdated.py --notes scripts/held.txt

clean:
	rm --recursive --force .venv .cache .ansible python/sdtune/ops/kernels/*.so
	find . -name __pycache__ -o -name .pytest_cache -o -name .mypy_cache -o -name .ruff_cache | xargs --no-run-if-empty rm --recursive

# Provisioning compiles them too; this target is for tests and benchmarks without provisioning.
kernels: dev-tools
	$(BIN)/python python/sdtune/ops/kernels/build.py

control-node:
	@scripts/control-node.sh requirements.txt

dev-tools:
	@scripts/control-node.sh requirements-dev.txt

browser:
	@scripts/packages.sh chromium:chromium

lab-tools:
	@scripts/packages.sh debootstrap:debootstrap ip:iproute2 tc:iproute2 unshare:util-linux

$(TEST_STAMP): roles/python_env/files/native.txt requirements-test.txt | dev-tools
	$(PLAY) provision.yml --tags python_env,gperftools,intel_mpi,sdtune -e work_dir=$(TEST_WORK)
	$(TEST_PYTHON) -m pip install --quiet --no-deps --require-hashes --requirement requirements-test.txt
	touch $@
