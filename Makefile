# Two commands for a fresh machine: `make demo` (a leaderboard in minutes) and `make test` (what CI runs).

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v $(name))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# A comma would end the argument of a call.
comma := ,

# $(call install,EXTRAS). Where `make hashes` has left its file, nothing is installed whose archive is not in it: every extra's
# packages, and then the project itself, which no hash can be of, built by the setuptools that is there by then.
ifeq ($(wildcard hashes.txt),)
install = $(PIP) --constraint constraints.txt --editable '.[$(1)]'
else
install = $(PIP) --require-hashes --no-deps --requirement hashes.txt && $(PIP) --no-deps --no-build-isolation --editable .
endif

# SAEBench's package has the import name of ours, and would be found in its place.
ALONE := @if ls -d .venv/lib*/python3*/site-packages/sae_bench >/dev/null 2>&1; then echo "error: SAEBench's package is \
in .venv, and is imported as sae_bench, as ours is: run $(BIN)/pip uninstall sae-bench" >&2; exit 1; fi

.PHONY: demo test docs parity audit sbom hashes faults benchmarks clean

demo: .venv/demo.stamp
	$(ALONE)
	$(BIN)/python bench.py --config demo

test: .venv/dev.stamp
	$(ALONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# The pages as a site, in build/site; a link between pages that leads nowhere fails.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Our files in other tools, theirs in ours, and SAEBench's numbers beside ours. Installs the peers into environments of
# their own the first time.
parity: .venv/demo.stamp
	$(BIN)/python tests/parity/run.py
	$(BIN)/python tests/parity/absorption.py

# Known holes in the pinned versions. Asks a service on the network, so it is no part of `make test`; without --strict, what
# the service cannot be asked about would count as sound.
audit: .venv/dev.stamp
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# What is installed, as CycloneDX has it, in build/sbom.json: names, versions, licences, and what needs what. The tool has an
# environment of its own, so that it does not list itself.
sbom: .venv/dev.stamp
	$(BIN)/python -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt cyclonedx-bom
	build/sbom/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json

# The SHA-256 of every archive that pip would install here, into hashes.txt, which is used from then on: an archive that is
# another one is refused. For this platform, and for torch from the index that pip is set up for; nothing is installed.
hashes: | .venv/bin/python
	mkdir -p build
	$(PIP) --dry-run --ignore-installed --report build/report.json --constraint constraints.txt '.[demo,dev,docs]' 'setuptools>=77'
	$(BIN)/python deploy/hashes.py build/report.json > build/hashes.txt
	mv build/hashes.txt hashes.txt

# Kills, full disks, flipped bits, changed files and the like, in numbers; writes the table of docs/reliability.md. Half an
# hour or more; `tests/faults.py NAME...` does some.
faults: .venv/dev.stamp
	$(BIN)/python tests/faults.py

# Against the peers, each in an environment of its own; half an hour on a quiet machine.
benchmarks: .venv/demo.stamp
	$(BIN)/python benchmarks/setup_peers.py
	for name in train_step breakdown density scaling evaluation bfloat16; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf .venv

# A stamp is as old as the installation: newer project files mean that it is made again.
.venv/dev.stamp: .venv/demo.stamp
	$(call install,demo$(comma)dev)
	touch $@

.venv/docs.stamp: .venv/demo.stamp
	$(call install,docs)
	touch $@

.venv/demo.stamp: pyproject.toml constraints.txt $(wildcard hashes.txt) | .venv/bin/python
	$(call install,demo)
	touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or run make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
