# Short forms of the usual commands. Each creates the environment first if it is missing.
#   make reproduce SCALE=smoke      every table of every paper
#   make table T=aid/3              one table (also T=aid/figure_4, T=aid/audit; T=aid: all of them)
#   make field SCALE=smoke          every purifier under one protocol, ranked
#   make plan                       the price of a scale, without running it; RATE=2.5: also in money
#   make data SCALE=desk            fetch and check the data sets of a scale
#   make site                       results/site/index.html: all tables, claims and figures to browse
#   make bench                      attacks and other libraries, methods and plain loops compared
#   make drill SEED=0 KILLS=50      faults at random; writes results/tables/drill.md; disks need root
#   make test-cluster               a table through a Slurm on this machine; needs root and Slurm
#   make register                   after a new component: golden output, status page, traits table
SCALE ?= smoke
SEED ?= 0
KILLS ?= 50
T ?= aid/3
CORES ?= $(shell nproc 2>/dev/null || echo 1)
# Processes that share the tests; each trains networks of its own, so that more gain little.
WORKERS ?= $(shell echo $$(($(CORES) < 4 ? $(CORES) : 4)))
PYTHON ?= python3

# An active conda environment with the dependencies (environment.yml) is used as it is.
CONDA := $(and $(CONDA_PREFIX),$(wildcard $(CONDA_PREFIX)/bin/snakemake))
BIN := $(if $(CONDA),$(CONDA_PREFIX)/bin,.venv/bin)
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)
# Shows one line per running job and one for the whole, see workflow/logger.
# --logger takes every word up to the next option.
DISPLAYED := PYTHONPATH=workflow/logger$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/snakemake --logger purifybench --cores $(CORES)

# T=aid/3 names table_3, T=aid/11a names table_11a, any other name is unchanged.
item := $(notdir $(T))
item := $(if $(filter 0% 1% 2% 3% 4% 5% 6% 7% 8% 9%,$(item)),table_$(item),$(item))
document := $(if $(findstring /,$(T)),$(dir $(T))$(item),$(T))

# Without byte code on disk, every start of Python takes three times as long.
unexport PYTHONDONTWRITEBYTECODE
# The rules must call the programs of the environment.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: reproduce table field plan data site bench register test test-cluster drill lint env lock clean

reproduce: env
	$(DISPLAYED) --config scale=$(SCALE)

table: env
	$(BIN)/python -m purifiers plan --scale $(SCALE) $(document)
	$(DISPLAYED) results/tables/$(SCALE)/$(if $(findstring /,$(T)),$(document).csv,$(T)/claims.csv) --config scale=$(SCALE)

field:
	$(MAKE) --no-print-directory table T=field/ranking

plan: env
	$(BIN)/python -m purifiers plan --scale $(SCALE) $(if $(RATE),--rate $(RATE))

data: env
	$(BIN)/python -m purifiers data --scale $(SCALE)

site: env
	$(BIN)/python -m purifiers site

bench: env .peers/.ready
	$(SNAKEMAKE) results/tables/timing/attacks.csv results/tables/timing/purification.csv

register: env
	$(BIN)/python tests/contract/renew_golden.py
	$(BIN)/python tests/regression/identities.py
	$(BIN)/python -m purifiers status

test: env .peers/.ready
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not cluster"

# Apart from the others: it waits for jobs that share the processor with them.
test-cluster: env
	$(BIN)/pytest tests/cluster

drill: env
	PYTHONPATH=tests $(BIN)/python -m drill --seed $(SEED) --kills $(KILLS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/python workflow/lint.py

env: $(if $(CONDA),,.venv/.ready)

# In a folder of its own, without python3-venv and without changes to the system's Python.
.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --target .uv uv

.venv/.ready: requirements.lock pyproject.toml | .uv/bin/uv
	test -x $(BIN)/python || .uv/bin/uv venv --quiet --python $(PYTHON) .venv
	.uv/bin/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	.uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# Other libraries, for `make bench` and tests/unit/test_peers.py; installed outside the environment.
.peers/.ready: benchmarks/timing/peers.lock | env .uv/bin/uv
	rm -rf .peers
	.uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes \
		--compile-bytecode --target .peers -r benchmarks/timing/peers.lock
	touch $@

# Run after a change of the dependencies in pyproject.toml or benchmarks/timing/peers.in.
lock: .uv/bin/uv
	.uv/bin/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
		--output-file requirements.lock
	.uv/bin/uv pip compile benchmarks/timing/peers.in --quiet --no-deps --universal \
		--python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
		--custom-compile-command "make lock" --output-file benchmarks/timing/peers.lock

# Keeps results/runs, which may hold hours of computation; delete it by hand.
clean:
	rm -rf .venv .uv .peers .snakemake .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	find purifiers tests workflow benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
