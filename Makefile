# `make` alone prints what there is. Nothing here needs anything done by hand before it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
CACHED := $(CURDIR)/.venv/.installed
ARGS ?=
# Compiled once, also where the environment forbids it beside the sources, as many containers' does:
# otherwise every process, and the tests start hundreds, would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/bytecode

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# The environment: what `make run` needs, and on top of it what the tests need ---------------------

$(CACHED)-local: requirements/local.txt requirements/torch.txt pyproject.toml .ci/install
	@.ci/install local

$(CACHED)-dev: requirements/dev.txt requirements/torch.txt pyproject.toml .ci/install
	@.ci/install dev

.PHONY: install
install: $(CACHED)-dev ## Make the virtual environment with everything in it

.PHONY: run
run: ## Serve the example model on http://127.0.0.1:8080 (options: ARGS="--port 9000")
	@$(MAKE) --no-print-directory $(CACHED)-$$([ -e $(CACHED)-dev ] && echo dev || echo local)
	@exec .venv/bin/sluice up manifests/examples/minilm.yaml $(ARGS)

# Checks -------------------------------------------------------------------------------------------

.PHONY: check
check: lint test ## Everything that CI runs

.PHONY: test
test: $(CACHED)-dev ## Run the tests (options: ARGS="tests/unit -k cache")
	@.ci/system-packages redis-server
	@.ci/system-packages --where-possible haproxy nginx $(NODE)
ifeq ($(strip $(ARGS)),)
	@.ci/test
else
	$(PY) -m pytest $(ARGS)
endif

.PHONY: test-cluster
test-cluster: $(CACHED)-dev ## Run the tests on a real Kubernetes alone (SLUICE_TEST_KUBERNETES=1.34)
	@.ci/system-packages --where-possible redis-server $(NODE)
	SLUICE_TEST_CLUSTER_REQUIRED=yes $(PY) -m pytest tests/cluster $(ARGS)

.PHONY: test-gpu
test-gpu: $(CACHED)-dev ## Run the tests of what a GPU computes, which needs one (options: ARGS="-k graphs")
	SLUICE_TEST_GPU_REQUIRED=yes $(PY) -m pytest tests/gpu $(ARGS)

.PHONY: lint
lint: $(CACHED)-dev ## Check style, types, layers and generated files; changes nothing
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m sluice_operator.crd --check

.PHONY: format
format: $(CACHED)-dev ## Rewrite the code in the house style
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.PHONY: generate
generate: $(CACHED)-dev ## Write the files that are made from code: CRD, reference pages, plain manifest
	$(PY) -m sluice_operator.crd --write
	$(PY) -m tests.support.chart --write

.PHONY: bench
bench: $(CACHED)-dev ## Measure beside nginx, HAProxy, Varnish, Rust routers, LiteLLM … (ARGS="gateway cache streams")
	@.ci/system-packages redis-server nginx wrk
	@.ci/system-packages --where-possible haproxy varnish:varnishd
	$(PY) bench $(ARGS)

.PHONY: bench-cluster
bench-cluster: $(CACHED)-dev ## Measure on a real Kubernetes beside its peers (options: ARGS="scaling services")
	@.ci/system-packages redis-server $(NODE)
	$(PY) -m bench.cluster $(ARGS)

# A real Kubernetes ----------------------------------------------------------------------------------

NAME = dev
CLUSTER = $(PY) -m tests.support.cluster --name $(NAME)
# What its node and the images are made with, each with what shows that it is there.
NODE := containerd runc containernetworking-plugins:/usr/lib/cni/ptp iptables conntrack busybox \
	iproute2:ip buildah mmdebstrap skopeo

.PHONY: images
images: $(CACHED)-dev ## Build the images, with Docker or without (options: ARGS="worker --builder buildah")
	@.ci/system-packages --where-possible buildah mmdebstrap skopeo
	$(PY) -m tests.support.images $(ARGS)

.PHONY: cluster
cluster: $(CACHED)-dev ## Bring a Kubernetes up in the background, with the platform on it (NAME=dev)
	@.ci/system-packages --where-possible redis-server $(NODE)
	@$(CLUSTER) start
	@$(CLUSTER) install

.PHONY: cluster-exec
cluster-exec: ## Run a command in it: make cluster-exec CMD='kubectl get pods -A'
	@[ -n "$$CMD" ] || { echo "usage: make cluster-exec CMD='kubectl get pods -A'" >&2; exit 2; }
	@$(CLUSTER) exec $(SHELL) -c "$$CMD"

# The shell gets it through the environment and as it was typed: its $(…) are not make's.
override CMD := $(value CMD)
export CMD

.PHONY: cluster-down
cluster-down: ## End it
	@$(CLUSTER) end

.PHONY: cluster-kind
cluster-kind: $(CACHED)-dev ## The same with kind, where there is Docker
	@$(CLUSTER) kind

# Dependencies -------------------------------------------------------------------------------------

COMPILE := uv pip compile --quiet --universal --generate-hashes --no-header --upgrade \
	--python-version 3.11
PINS := $(COMPILE) --override requirements/override.txt pyproject.toml
LIKE_DEV := --constraint requirements/dev.txt

.PHONY: requirements
requirements: ## Pin the newest versions again, with hashes
	$(PINS) --extra local --output-file requirements/local.txt
	$(PINS) --extra local --extra operator --group dev \
		--constraint requirements/local.txt --output-file requirements/dev.txt
	$(PINS) --extra operator $(LIKE_DEV) --output-file requirements/operator.txt
	$(PINS) --extra gateway $(LIKE_DEV) --output-file requirements/gateway.txt
	$(PINS) --extra worker $(LIKE_DEV) --output-file requirements/worker.txt
	$(COMPILE) --group image $(LIKE_DEV) --output-file requirements/image.txt

.PHONY: clean
clean: ## Remove the virtual environment and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache bench/results
