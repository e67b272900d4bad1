# One task list for people and for CI. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROTOS := $(shell find protos -name '*.proto' | LC_ALL=C sort)
GEN := gen
SCHEMAS := schemas
TESTS := tests
# Two cores start to queue beyond four workers; the mesh under test needs its share.
WORKERS := $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))

# On component sets and stores other than the default ones; `make test-brokers` runs these.
ELSEWHERE := tests/brokers tests/stores
# What every state store must keep, for each service that has state: on PostgreSQL by `make test`, on SQLite by
# `make test-brokers`.
STATE := tests/conversation tests/mesh/test_races.py tests/task tests/recurrence/test_series.py \
  tests/recurrence/test_redelivery.py tests/reminder/test_reminders.py tests/notification/test_inbox.py \
  tests/extension/test_registry.py tests/recipe/test_repository.py tests/agent/test_sessions.py
# In namespaces of its own; `make test-cluster` runs it.
CLUSTER := tests/cluster
# Installs packages, which those namespaces have no way to; `make test-cluster` runs it before.
IMAGE := tests/image
# With a real Prometheus, Zipkin and browser; `make test-observability` runs these.
SEEING := tests/observability
# What `make test` leaves to the other targets.
APART := $(ELSEWHERE) $(CLUSTER) $(IMAGE) $(SEEING)

.PHONY: help demo up down test test-brokers test-cluster test-observability soak check generate released bench recording clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Start the mesh and show the main job on it, with all set-up (first run: about five minutes).
	@$(BIN)/gaggle tools dapr >/dev/null
	@$(BIN)/gaggle tools grpcurl >/dev/null
	@$(BIN)/gaggle demo

up: $(INSTALLED) ## Start the mesh in the background (`gaggle status`, `gaggle logs SERVICE`).
	@$(BIN)/gaggle up --detach

down: $(INSTALLED) ## Stop the mesh; its data stays in .gaggle/.
	@$(BIN)/gaggle down

test: $(INSTALLED) ## Run every test, on a mesh of its own beside any running one.
	@$(BIN)/gaggle tools dapr
	@$(BIN)/gaggle tools sentry
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(APART:%=--ignore=%) $(TESTS)

test-brokers: $(INSTALLED) ## Run the conformance tests on every broker and store (installs them; about fifteen minutes).
	@$(BIN)/gaggle tools dapr
	@$(BIN)/gaggle tools sentry
	@$(BIN)/gaggle tools rabbitmq
	@$(BIN)/gaggle tools kafka
	@$(BIN)/gaggle tools apicurio
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ELSEWHERE)
	@GAGGLE_TEST_STORE=sqlite $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(STATE)

test-cluster: $(INSTALLED) ## Run the Helm chart on a real control plane, without containers (Linux, root; first run: three quarters of an hour).
	@[ "$$(id -u)" = 0 ] || { echo 'Namespaces take root: sudo --preserve-env=HOME,PATH make test-cluster' >&2; exit 1; }
	@$(BIN)/gaggle tools dapr >/dev/null
	@$(BIN)/gaggle tools kafka >/dev/null
	@$(BIN)/gaggle tools cluster >/dev/null
	@$(BIN)/python -m pytest $(IMAGE)
	@GAGGLE_TEST_CLUSTER=private unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
	  $(BIN)/python -m pytest -rP -p no:cacheprovider $(CLUSTER)

soak: $(INSTALLED) ## Kill, stall and restart a mesh under load for half an hour (GAGGLE_SOAK_SECONDS, GAGGLE_SEED).
	@$(BIN)/gaggle tools dapr
	@GAGGLE_SOAK_SECONDS=$${GAGGLE_SOAK_SECONDS:-1800} $(BIN)/python -m pytest --capture=no tests/mesh/test_faults.py -k mixed

test-observability: $(INSTALLED) ## Look at a mesh by Prometheus, Zipkin and a browser (fetches them; about four minutes).
	@$(BIN)/gaggle tools dapr
	@$(BIN)/gaggle tools prometheus
	@$(BIN)/gaggle tools zipkin
	@$(BIN)/gaggle tools chromium
	@$(BIN)/python -m pytest $(SEEING)

check: $(INSTALLED) ## Lint, format, types, contracts, and that generated code is fresh.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/buf breaking --against protos/released.binpb
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	  $(MAKE) generate GEN="$$fresh" SCHEMAS="$$fresh"; \
	  for made in gen/gaggle schemas/json schemas/avro; do \
	    diff -r --exclude=__pycache__ $$made "$$fresh/$${made#*/}" \
	      || { echo "$$made is stale: run \`make generate\` and commit it" >&2; exit 1; }; \
	  done

generate: $(INSTALLED) ## Make gen/ and the event schemas from protos/.
	@rm -rf $(GEN)/gaggle && mkdir -p $(GEN)/gaggle
	@$(BIN)/python -m grpc_tools.protoc \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --proto_path=protos --proto_path=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  --python_out=$(GEN) --grpc_python_out=$(GEN) --mypy_out=quiet:$(GEN) --mypy_grpc_out=quiet:$(GEN) $(PROTOS)
	@touch $(GEN)/gaggle/py.typed
	@$(BIN)/python -m schemas $(SCHEMAS)

released: $(INSTALLED) ## Record the contracts as released: later ones are checked against them.
	@$(BIN)/buf build --exclude-source-info -o protos/released.binpb

bench: $(INSTALLED) ## Measure Gaggle and its peers side by side (about fifteen minutes).
	@$(BIN)/python -m bench

recording: $(INSTALLED) ## Run docs/recipe-run again and record what it shows (a minute).
	@docs/recipe-run/run.sh > docs/recipe-run/recording.tmp
	@mv docs/recipe-run/recording.tmp docs/recipe-run/recording.txt
	@cat docs/recipe-run/recording.txt

clean: ## Remove what builds and tests left; the mesh's data and the cached binaries stay.
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build $(VENV)
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything is installed by hash from the lock; an unchanged lock costs nothing.
$(INSTALLED): requirements.lock pyproject.toml
	@python=; for candidate in $${PYTHON:-} python3.11 python3.12 python3.13 python3; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Gaggle needs Python 3.11 or newer; this machine's python3 is $$(python3 --version 2>&1 || true)." >&2; \
	  echo 'Install it, or name one: make PYTHON=/path/to/python3.11' >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version)"; \
	if ! [ -x $(BIN)/pip ]; then "$$python" -m venv --clear $(VENV) || { \
	  echo 'The venv module failed: on Debian and Ubuntu it is the package python3-venv.' >&2; exit 1; }; fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
