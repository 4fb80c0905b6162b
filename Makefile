# One word per job. `make` alone lists them. Needs GNU make, Python 3.11 or newer and a POSIX shell.

MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/sh
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
SAM_VENV := .venv-sam
SAM_STAMP := $(SAM_VENV)/.stamp
MINISTACK_VENV := .venv-ministack
MINISTACK_STAMP := $(MINISTACK_VENV)/.stamp
EMULATORS ?= moto ministack
UV_VERSION := 0.13.8
LISTS := functions/requirements.in infra/layer/requirements.in infra/requirements.in infra/local/requirements.in \
    infra/deploy/requirements.in tests/requirements.in
BROKERS := artemis ejabberd hivemq mochi rabbitmq
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup run demo test check format bench chaos matrix fuzz build release sam-test aws-test container-test minio versitygw kustomize \
    micropython seaweedfs garage ceph $(BROKERS) lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## .venv with everything, pinned by hash (PYTHON=/path/to/python to choose one)
	@:

run: $(STAMP) ## the whole thing on this machine: object store, Mosquitto, host
	@$(BIN)/python -m infra.local.demo run $(ARGS)

demo: $(STAMP) ## the same, with an upload and a device that hears of it; then stops
	@$(BIN)/python -m infra.local.demo demo $(ARGS)

test: $(STAMP) ## the tests (ARGS="tests/unit -k topic" for some of them, WORKERS=0 for one after the other)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

check: $(STAMP) ## formatting, lint, types
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

format: $(STAMP) ## put formatting and imports right
	@$(BIN)/python -m ruff check --select I --fix --quiet .
	@$(BIN)/python -m ruff format .

bench: $(STAMP) $(SAM_STAMP) ## every figure beside a peer's (ARGS="--write docs/benchmarks.md" for the page and its plot)
	@$(BIN)/python -m infra.bench $(ARGS)

chaos: $(STAMP) ## numbered uploads while everything breaks; none may be lost (ARGS="--profile long", root for all of it)
	@$(BIN)/python -m tests.chaos $(ARGS)

matrix: $(STAMP) ## one suite over every store and broker at hand (ARGS="--only minio,mosquitto", ARGS=--help for what is not)
	@$(BIN)/python -m tests.matrix $(ARGS)

fuzz: $(STAMP) ## the searches in tests/hostile, 100 times as hard (FUZZ=1000, ARGS="-k event")
	@FUZZ=$${FUZZ:-100} $(BIN)/python -m pytest tests/hostile -k search --timeout 14400 --numprocesses $(WORKERS) $(ARGS)

build: $(STAMP) $(SAM_STAMP) ## what is deployed: `sam build`, trimmed and compiled (ARGS="--architecture arm64")
	@$(BIN)/python -m infra.sam.build $(ARGS)

release: $(STAMP) ## what is published, in dist/: wheel, sdist, SBOM, image, checksums; each tried in a clean environment
	@$(BIN)/python -m infra.deploy.release

# 300 s for each test: the first one installs and starts Docker where there is none, and makes the image.
sam-test: $(STAMP) $(SAM_STAMP) ## the functions in containers, as AWS runs them (Docker, Python 3.13)
	@$(BIN)/python -m pytest tests/sam --timeout 300 $(ARGS)

aws-test: $(STAMP) $(SAM_STAMP) $(if $(filter ministack,$(EMULATORS)),$(MINISTACK_STAMP)) ## template and functions on two emulated AWS (Docker, root, Python 3.13; EMULATORS=moto or ministack)
	@for emulator in $(EMULATORS); do \
	    EMULATOR=$$emulator $(BIN)/python -m pytest tests/aws --timeout 300 $(ARGS) || exit; \
	done

container-test: $(STAMP) ## the images, `docker compose up` and the systemd unit, on stand-ins for the public bases (Docker, Python 3.13, Go)
	@$(BIN)/python -m pytest tests/container --timeout 900 $(ARGS)

minio: | $(BIN)/python ## build MinIO from source (needs Go), for `make run` and the tests
	@$(BIN)/python -m infra.local.install minio

versitygw: | $(BIN)/python ## build Versity GW from source (needs Go), for the tests
	@$(BIN)/python -m infra.local.install versitygw

kustomize: | $(BIN)/python ## build Kustomize from source (needs Go), for the tests of the Kubernetes manifests
	@$(BIN)/python -m infra.local.install kustomize

micropython: | $(BIN)/python ## unpack MicroPython (Debian 13's package), for the tests of its client
	@$(BIN)/python -m infra.local.install micropython

seaweedfs: | $(BIN)/python ## build SeaweedFS from source (needs Go), for `make matrix`
	@$(BIN)/python -m tests.matrix.stores.install $@

garage: | $(BIN)/python ## build Garage from source (needs Rust), for `make matrix`
	@$(BIN)/python -m tests.matrix.stores.install $@

ceph: | $(BIN)/python ## install Ceph's packages (apt), for `make matrix`
	@$(BIN)/python -m tests.matrix.stores.install $@

artemis: ## ActiveMQ Artemis, for `make matrix` (fetched with Maven)
ejabberd: ## ejabberd, for `make matrix` (the system's package)
hivemq: ## HiveMQ CE, for `make matrix` (fetched with Maven)
mochi: ## mochi, for `make matrix` (built with Go)
rabbitmq: ## RabbitMQ 4 in a small Debian of its own, for `make matrix` (root)
$(BROKERS): $(STAMP)
	@$(BIN)/python -m tests.matrix.brokers $@

lock: | $(BIN)/python ## write the requirements.txt files anew (ARGS=--upgrade for newer indirect packages)
	@$(BIN)/python -m pip install --quiet 'uv==$(UV_VERSION)'
	@$(COMPILE) functions/requirements.in --output-file functions/requirements.txt
	@$(COMPILE) infra/layer/requirements.in \
	    --constraints functions/requirements.txt --output-file infra/layer/requirements.txt
	@$(COMPILE) functions/requirements.in infra/layer/requirements.in infra/requirements.in \
	    --constraints functions/requirements.txt --constraints infra/layer/requirements.txt \
	    --output-file infra/requirements.txt
	@$(COMPILE) $(LISTS) \
	    --constraints infra/requirements.txt --output-file tests/requirements.txt
	@$(COMPILE) infra/sam/requirements.in --output-file infra/sam/requirements.txt
	@$(COMPILE) tests/aws/requirements.in --output-file tests/aws/requirements.txt
	@$(COMPILE) infra/sam/image-requirements.in \
	    --constraints tests/requirements.txt --output-file infra/sam/image-requirements.txt

# One resolution for every platform and Python, so that they never disagree; the SAM CLI and MiniStack stand alone.
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --no-config --universal \
    --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url $(ARGS)

clean: ## remove .venv, caches and build leftovers (binaries built by make minio stay)
	@rm -rf $(VENV) $(SAM_VENV) $(MINISTACK_VENV) build dist ./*.egg-info .aws-sam .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find functions infra tests -type d -name __pycache__ -prune -exec rm -rf {} +

# tests/requirements.txt is the whole closure, so pip has nothing to resolve.
# The build backend first, pinned as all: what is published as source alone (nkeys) is built with it.
$(STAMP): tests/requirements.txt $(LISTS) pyproject.toml | $(BIN)/python
	@start=$$(date +%s); \
	echo "Installing $$(grep -c == tests/requirements.txt) pinned packages into $(VENV) (the first time: half a minute or so) …"; \
	sed -n '/^setuptools==/,/[^\\]$$/p' tests/requirements.txt > $(VENV)/backend.txt && \
	$(BIN)/python -m pip install --quiet --no-input --no-deps --require-hashes -r $(VENV)/backend.txt && \
	$(BIN)/python -m pip install --quiet --no-input --no-deps --no-build-isolation --require-hashes -r tests/requirements.txt && \
	$(BIN)/python -m pip install --quiet --no-input --no-deps --no-build-isolation --editable . && \
	touch $@ && \
	echo "Ready after $$(($$(date +%s) - start)) s."

# The SAM CLI pins packages that are ours in other versions.
$(SAM_STAMP): infra/sam/requirements.txt | $(BIN)/python
	@echo "Installing the SAM CLI into $(SAM_VENV) (once: a minute or so) …"
	@$(BIN)/python -m venv --clear $(SAM_VENV)
	@$(SAM_VENV)/bin/python -m pip install --quiet --no-input --no-deps --require-hashes -r $<
	@touch $@

# MiniStack runs the functions in its own process tree, and they are compiled for the runtime's Python.
$(MINISTACK_STAMP): tests/aws/requirements.txt | $(BIN)/python
	@echo "Installing MiniStack into $(MINISTACK_VENV) (once: half a minute or so) …"
	@runtime=$$($(BIN)/python -c 'from infra.sam.tool import runtime_python; print(runtime_python())') && \
	    "$$runtime" -m venv --clear $(MINISTACK_VENV)
	@$(MINISTACK_VENV)/bin/python -m pip install --quiet --no-input --no-deps --require-hashes -r $<
	@touch $@

# A .venv whose Python has gone is a dangling link, hence missing to make, hence built anew.
$(BIN)/python:
	@command -v '$(PYTHON)' > /dev/null || { \
	    echo "There is no '$(PYTHON)'. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3.13" >&2; \
	    exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "bucketbell needs Python 3.11 or newer; '$(PYTHON)' is $$('$(PYTHON)' -V 2>&1)." >&2; \
	    echo "Install a newer one, or name one: make setup PYTHON=/path/to/python3.13" >&2; \
	    exit 1; }
	@'$(PYTHON)' -m ensurepip --version > /dev/null 2>&1 || { $(INSTALL_VENV); }
	@'$(PYTHON)' -m venv --clear $(VENV)

# Debian and Ubuntu ship Python without the part of it that makes virtual environments.
INSTALL_VENV = \
    package=python$$('$(PYTHON)' -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv; \
    if [ "$$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi; \
    if command -v apt-get > /dev/null && $$sudo true 2> /dev/null; then \
        echo "Installing $$package, which '$(PYTHON)' lacks …"; \
        $$sudo apt-get update -qq; \
        $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$package" > /dev/null; \
    fi; \
    '$(PYTHON)' -m ensurepip --version > /dev/null 2>&1 || { \
        echo "'$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install $$package" >&2; \
        exit 1; }
