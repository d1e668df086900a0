# Every target sets up what it needs by itself: Python 3.11 or newer and make are enough. uv is used where it is installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
STAMP := $(VENV)/.installed
LOCK ?= dev
EDITABLE ?= -e forwarder -e . -e operator
SOURCES := channels_zmq forwarder operator tests e2e benchmarks examples docs charts requirements
PYTEST := $(BIN)/python -m pytest
# The tests wait more than they compute: on real sockets, processes and deadlines.
JOBS ?= 4
# A process that has done its part takes over some of another's.
PARALLEL = $(PYTEST) -n $(JOBS) --dist worksteal
# These compute, and have a clock of their own: no other test can disturb them.
SIMULATIONS := tests/library/test_simulation.py tests/library/test_short_schedules.py tests/forwarder/test_simulation.py

.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv from the hashed requirement files (every other target does it too)

$(STAMP): requirements/$(LOCK).txt pyproject.toml forwarder/pyproject.toml operator/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.13 ...")'
ifdef UV
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/$(LOCK).txt
	$(if $(EDITABLE),$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(EDITABLE))
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(LOCK).txt
	$(if $(EDITABLE),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(EDITABLE))
endif
	@touch $@

demo: $(STAMP) ## Serve the example chat by two forwarders, two web processes and a worker, until Ctrl-C
	@$(BIN)/python examples/chat/demo.py dedicated

demo-embedded: $(STAMP) ## The same chat from one process with the embedded layer
	@$(BIN)/python examples/chat/demo.py embedded

# A simulated schedule that has failed is replayed with the same order of sets.
test test-all test-slow test-under-load simulate: export PYTHONHASHSEED ?= $(shell date +%s)

test: $(STAMP) ## Run the quick tests (under 5 minutes on 2 cores)
	$(PARALLEL) -m "not slow"

test-all: $(STAMP) ## Run every test; browser tests need chromium, some need redis-server
	$(PYTEST)

test-slow: $(STAMP) ## Run only the slow tests
	$(PARALLEL) -m slow $(SIMULATIONS)
	$(PYTEST) -m slow $(SIMULATIONS:%=--ignore=%)

simulate: $(STAMP) ## Run SCHEDULES (5000) random schedules of the simulation that no run had before, in fifties: about 4 a second and core
	SIMULATION_FIRST=$(shell date +%s)000 SIMULATION_MANY=$(or $(SCHEDULES),5000) $(PARALLEL) -m slow -k many_random tests/library/test_simulation.py

coverage: $(STAMP) ## Measure how much of the three packages their own quick tests run; below the floor it fails
	$(PARALLEL) -q -m "not slow" tests/library tests/forwarder tests/operator --cov --cov-report=term:skip-covered

screenshots: $(STAMP) ## Renew the pictures in docs/images (needs chromium)
	SCREENSHOTS=docs/images $(PYTEST) -q tests/integration/test_counting_in_a_browser.py

test-under-load: $(STAMP) ## Run the quick tests RUNS times (10) while two busy processes keep the cores busy
	$(BIN)/python tests/support/load.py --runs $(or $(RUNS),10) $(PARALLEL) -q -m "not slow"

test-lowest: ## Run a quick subset with the lowest versions that the library and the forwarder allow (needs Python 3.11)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "the lowest versions need Python 3.11: make test-lowest PYTHON=python3.11")'
	$(MAKE) setup VENV=.venv-lowest LOCK=lowest EDITABLE="-e forwarder -e ."
	.venv-lowest/bin/python -m pip check
	.venv-lowest/bin/python -m pytest -m "not slow" tests/library tests/forwarder tests/integration/test_layers.py

test-channels: ## Run Channels' own tests with our consumers in place of theirs (CHANNELS=a checkout of django/channels)
	@test -d "$(CHANNELS)/tests" || { echo "CHANNELS=... has to be a checkout of Channels' repository"; exit 1; }
	$(MAKE) setup VENV=.venv-channels LOCK=channels EDITABLE="-e forwarder -e ."
	cd "$(CHANNELS)" && PYTHONPATH="$(CURDIR)/tests/support:." "$(CURDIR)/.venv-channels/bin/python" -m pytest -p lean_channels tests --ignore tests/sample_project

lint: $(STAMP) ## Ruff, formatting, import contracts
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

check: lint types generate ## Everything that needs no running: lint, types, generated files
	@test ! -e operator/__init__.py || { echo "operator/__init__.py shadows the standard library's operator module: delete it"; exit 1; }
	@! git ls-files 'tests/*__init__.py' 'e2e/*__init__.py' | grep . || { echo "a folder under tests/ or e2e/ never has an __init__.py"; exit 1; }
	@$(PYTHON) requirements/base_images.py --check $(DOCKERFILES)
	@git diff --exit-code -- docs forwarder/README.md charts/channels-zmq || { echo "generated files were stale: commit what 'make generate' wrote"; exit 1; }

generate: $(STAMP) ## Write the generated files: test vectors of the wire format, parts of the chart, tables of settings
	$(BIN)/python docs/generate.py

docs: ## Build the documentation into dist/docs; a broken link or reference is an error
	$(MAKE) setup VENV=.venv-docs LOCK=docs EDITABLE=
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet --strict

HELM ?= $(or $(shell command -v helm 2>/dev/null),$(or $(CLUSTER_HOME),$(HOME)/.cache/channels-zmq-cluster)/bin/helm)
CHART := charts/channels-zmq

chart: generate ## Lint the chart and render it into dist/ (needs helm: HELM=..., on PATH, or in CLUSTER_HOME/bin)
	$(HELM) lint --strict --kube-version $(or $(KUBERNETES),1.36.0) $(CHART)
	@mkdir -p dist
	$(HELM) template channels-zmq $(CHART) --kube-version $(or $(KUBERNETES),1.36.0) > dist/channels-zmq.yaml

PROMTOOL := github.com/prometheus/prometheus/cmd/promtool@v0.316.0

promtool: $(STAMP) ## Build promtool into .venv, by which tests evaluate the chart's alerts (needs go; minutes the first time)
	GOBIN=$(abspath $(BIN)) go install -tags remove_all_sd $(PROMTOOL)

chart-archive: ## Package the chart into dist/ (needs helm; DIGESTS="operator=sha256:... forwarder=sha256:..." pins its images)
	@mkdir -p dist
	$(PYTHON) charts/package.py $(HELM) $(DIGESTS)

IMAGE_BUILD ?= e2e/build-image
IMAGE_PREFIX ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

images: ## Build the images of forwarder, operator and chat (needs docker, or IMAGE_BUILD=COMMAND; IMAGE_PREFIX=registry/)
	$(IMAGE_BUILD) . forwarder/Dockerfile $(IMAGE_PREFIX)channels-zmq-forwarder:$(VERSION)
	$(IMAGE_BUILD) . operator/Dockerfile $(IMAGE_PREFIX)channels-zmq-operator:$(VERSION)
	$(IMAGE_BUILD) . examples/chat/Dockerfile $(IMAGE_PREFIX)channels-zmq-chat:$(VERSION)

DOCKERFILES := forwarder/Dockerfile operator/Dockerfile examples/chat/Dockerfile

base-images: ## Pin the base image of all images to the digest that its tag has now (asks its registry; BASEFLAGS=--check)
	$(PYTHON) requirements/base_images.py $(BASEFLAGS) $(DOCKERFILES)

e2e: $(STAMP) ## Run the end-to-end scenarios on the cluster of KUBECONFIG, whose nodes have the images (needs kubectl, helm, E2E_CLUSTER)
	$(PYTEST) e2e $(E2EFLAGS)

e2e-kind: $(STAMP) ## The same on a new cluster by kind, with new images (needs docker, kind, kubectl, helm; KUBERNETES=1.36.0)
	e2e/kind

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

LOCKS := runtime forwarder operator chat dev tests docs audit channels
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-strip-extras --no-emit-index-url --no-emit-find-links $(LOCKFLAGS)

lock: ## Compile requirements/*.txt with hashes from requirements/*.in (needs uv)
	@test -n "$(UV)" || { echo "uv is needed to compile the requirement files"; exit 1; }
	for name in $(LOCKS); do \
		$(COMPILE) -o requirements/$$name.txt requirements/$$name.in || exit 1; \
	done
	$(COMPILE) --resolution lowest-direct -o requirements/lowest.txt requirements/lowest.in

# Not requirements/lowest.txt: nobody installs its old versions, which are there to be tested.
audit: ## Look for known vulnerabilities of what the requirement files pin for PYTHON (asks the package index)
	$(MAKE) setup VENV=.venv-audit LOCK=audit EDITABLE=
	@status=0; for name in $(LOCKS); do \
		echo "requirements/$$name.txt"; \
		.venv-audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off $(AUDITFLAGS) \
			-r requirements/$$name.txt || status=1; \
	done; exit $$status

bench: $(STAMP) ## Measure against Redis layers, InMemory and raw libzmq (needs redis-server); QUICK=1, BASE=COMMIT: see docs/performance.md
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(if $(BASE),--base $(BASE)) $(BENCHFLAGS)

chaos: $(STAMP) ## Kill, freeze, cut and replace under load, and count exactly (CHAOSFLAGS="--short --only kill-only")
	$(BIN)/python tests/chaos $(CHAOSFLAGS)

bench-publish: $(STAMP) ## Let the pages show a run of the benchmarks (RESULT=its JSON file, LOOP=uvloop if it ran on that)
	cp "$(RESULT)" benchmarks/published/$(or $(LOOP),asyncio).json
	$(BIN)/python docs/generate.py

bench-sequences: $(STAMP) ## Measure what sequence numbers cost, in time and memory
	$(BIN)/python -m benchmarks.sequences

bench-floods: $(STAMP) ## Measure what one peer does to others by sending as fast as it can
	$(BIN)/python -m benchmarks.floods

bench-connections: $(STAMP) ## Measure what many connections that say little do to a forwarder with few descriptors
	$(BIN)/python -m benchmarks.idle_connections

bench-webhook: $(STAMP) ## Measure how long the webhook takes for a review
	$(BIN)/python -m benchmarks.webhook

distributions: $(STAMP) ## Build sdists and wheels of all three distributions into dist/
	for folder in . forwarder operator; do \
		(cd $$folder && $(CURDIR)/$(BIN)/python -m hatchling build -t sdist -t wheel -d $(CURDIR)/dist) || exit 1; \
	done

project-url: ## Write the address of the project, PROJECT_URL, into its distributions and its chart, for a release
	@case "$(PROJECT_URL)" in https://*) ;; *) echo "PROJECT_URL=https://... is missing" >&2; exit 1;; esac
	for folder in . forwarder operator; do \
		printf '\n[project.urls]\nSource = "%s"\n' "$(PROJECT_URL)" >> $$folder/pyproject.toml || exit 1; \
	done
	printf 'home: %s\nsources: [%s]\n' "$(PROJECT_URL)" "$(PROJECT_URL)" >> charts/channels-zmq/Chart.yaml

CYCLONEDX := .venv-audit/bin/cyclonedx-py requirements --output-reproducible

sbom: ## List the packages that each distribution is locked to, as CycloneDX, into dist/
	$(MAKE) setup VENV=.venv-audit LOCK=audit EDITABLE=
	@mkdir -p dist
	$(CYCLONEDX) --pyproject pyproject.toml --mc-type library -o dist/channels_zmq-$(VERSION).cdx.json requirements/runtime.txt
	$(CYCLONEDX) --pyproject forwarder/pyproject.toml -o dist/channels_zmq_forwarder-$(VERSION).cdx.json requirements/forwarder.txt
	$(CYCLONEDX) --pyproject operator/pyproject.toml -o dist/channels_zmq_operator-$(VERSION).cdx.json requirements/operator.txt

clean: ## Remove .venv, caches and build results
	rm -rf $(VENV) .venv-lowest .venv-audit .venv-docs .venv-channels dist .mypy_cache .ruff_cache .pytest_cache .hypothesis benchmarks/results

.PHONY: docs help setup demo demo-embedded test test-all test-slow coverage screenshots test-under-load simulate test-lowest test-channels lint types check generate chart promtool chart-archive images base-images e2e e2e-kind format lock audit bench bench-publish chaos bench-sequences bench-floods bench-connections bench-webhook distributions project-url sbom clean
