# Works on a fresh machine that has Python 3.11 or newer, make, and a way to PyPI.
#
#   make demo    a real cluster, a real workload, one agent killed on the way
#   make test    every test that needs no Docker engine
#   make chaos   every fault with SEEDS=20 seeds, RUNS=4 at a time, and 10,000 simulated schedules:
#                hours; goes on where it was broken off; writes docs/reliability.md
#   make check   formatting, lint, types, import contracts, contracts of the wire, generated code

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 …` takes another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; \
  done)
VENV ?= .venv
# LOCKED=1 installs exactly requirements/lock.txt, hashes checked; without it, pyproject.toml's ranges.
LOCKED ?=
# Test processes side by side.
JOBS ?= 2
PYTEST_ARGS ?=
# Of `make chaos`.
SEEDS ?= 20
RUNS ?= 4
# Of the burst of each run: as many as are still under way when a fault strikes.
TASKS ?= 1000
SCHEDULES ?= 10000

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help venv demo test check check-format check-lint check-types check-imports check-contracts \
  check-generated format proto lock bench chaos clean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

# Done again whenever pyproject.toml changes, so that an old environment never hides a missing
# dependency.
$(STAMP): pyproject.toml requirements/lock.txt
	@if [ -z "$(PYTHON)" ]; then \
	  echo "Muster needs Python 3.11 or newer; none was found on PATH (set PYTHON=/path/to/python)." >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; fi
	@echo "Installing into $(VENV) (about a minute the first time) …"
	@if ! "$(BIN)/python" -m pip --version >/dev/null 2>&1; then "$(PYTHON)" -m venv --clear "$(VENV)"; fi
	@export PIP_DISABLE_PIP_VERSION_CHECK=1; if [ -n "$(LOCKED)" ]; then \
	  "$(BIN)/python" -m pip install --quiet --require-hashes -r requirements/lock.txt && \
	  "$(BIN)/python" -m pip install --quiet --no-deps -e .; \
	else \
	  "$(BIN)/python" -m pip install --quiet -e '.[local,examples,dev]'; \
	fi
	@touch "$@"

demo: $(STAMP)
	@"$(BIN)/python" -m examples.smart_manufacturing.demo

# loadgroup: tests that start a whole cluster carry one group, so they run one after another on
# one worker while the other worker does the rest.
test: $(STAMP)
	"$(BIN)/python" -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS) tests

# Separate targets, so that `make --keep-going check` reports all that is wrong at once.
check: check-format check-lint check-types check-imports check-contracts check-generated

check-format: $(STAMP)
	"$(BIN)/ruff" format --check .

check-lint: $(STAMP)
	"$(BIN)/ruff" check .

check-types: $(STAMP)
	"$(BIN)/mypy"

check-imports: $(STAMP)
	"$(BIN)/lint-imports" --no-cache

check-contracts: $(STAMP)
	"$(BIN)/buf" lint

check-generated: $(STAMP)
	PYTHON="$(BIN)/python" proto/generate.sh --check
	"$(BIN)/python" -m muster.domain.lifecycle_diagram --check docs/lifecycles.md

format: $(STAMP)
	"$(BIN)/ruff" format .
	"$(BIN)/ruff" check --fix .

proto: $(STAMP)
	PYTHON="$(BIN)/python" proto/generate.sh
	"$(BIN)/python" -m muster.domain.lifecycle_diagram docs/lifecycles.md

# One file for every Python and platform that the project supports; it names no package index.
lock:
	@tool=$$(mktemp -d) && trap 'rm -rf "$$tool"' EXIT && \
	"$(PYTHON)" -m venv "$$tool" && "$$tool/bin/python" -m pip install --quiet uv && \
	"$$tool/bin/uv" pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
	  --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --output-file requirements/lock.txt pyproject.toml >/dev/null
	@! grep -nE '://|--(index|extra|find|trusted)' requirements/lock.txt

bench: $(STAMP)
	"$(BIN)/python" benchmarks/end_to_end.py --tasks 10000 --agents 2

# Exit code 1 when anything did not hold; the page says what. What was run with the very same code
# lies in .chaos and is not run again.
chaos: $(STAMP)
	"$(BIN)/python" benchmarks/chaos.py --fault all --seeds $(SEEDS) --jobs $(RUNS) --tasks $(TASKS) \
	  --schedules $(SCHEDULES) --results .chaos --resume --markdown docs/reliability.md

clean:
	rm -rf $(VENV) .chaos .mypy_cache .ruff_cache .pytest_cache .hypothesis
