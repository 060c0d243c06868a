# Two commands do everything: `make demo` and `make test`. Both need Python >= 3.11 and a C compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Where pip is told to look for wheels, uv looks too; elsewhere torch comes from its CPU builds.
LINKS  := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
UVPIP  := $(if $(LINKS),UV_FIND_LINKS="$(LINKS)" ,)$(BIN)/uv pip install -q --python $(BIN)/python $(if $(LINKS),,--torch-backend cpu)

.PHONY: demo test test-fast lint types format bench bench-router conformance conformance-fast clean

demo: $(VENV)/.demo
	$(BIN)/retort demo $(ARGS)

test: $(VENV)/.dev lint types test-fast
	$(BIN)/python -m pytest -m slow $(ARGS)
	$(MAKE) conformance-fast ARGS=

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 4 --dist loadgroup $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-router

# The router against its baselines (docs/router.md); ARGS="--quick", "--only speed", "--docs"
bench-router: $(VENV)/.dev
	$(BIN)/python benchmarks/router/run.py $(ARGS)

# Third-party suites against the running gateway (docs/conformance.md); ARGS="--only openai-python"
conformance: $(VENV)/.dev
	$(if $(LINKS),UV_FIND_LINKS="$(LINKS)" )$(BIN)/python tests/conformance/run.py $(ARGS)

conformance-fast: $(VENV)/.dev
	$(if $(LINKS),UV_FIND_LINKS="$(LINKS)" )$(BIN)/python tests/conformance/run.py --fast $(ARGS)

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

$(VENV)/.demo: pyproject.toml | $(BIN)/uv
	$(UVPIP) -e '.[train]' || $(BIN)/python -m pip install -q -e '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/uv
	$(UVPIP) -e '.[train,dev]' || $(BIN)/python -m pip install -q -e '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-conformance build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
