# make run    retrain with params.yaml
# make check  make lint and the unit tests: before every commit, less than a minute
# make test   all tests
# make lint   ruff, mypy, hadolint
# make bench  the figures of benchmarks/results.md, three quarters of an hour; ALPACA=FILE takes that corpus
# Each of them makes the virtual environment from requirements.lock first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

# the stage commands in dvc.yaml say `python`
export PATH := $(abspath $(BIN)):$(PATH)
# uv has settings of its own; what pip was told about wheels and indexes holds for it too
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

.PHONY: setup run check unit test lint bench format lock clean

setup: $(VENV)/complete

# byte code is compiled here, once: a process that imports transformers from its source takes 7 s instead of 2
$(VENV)/complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@for tool in git c++; do command -v $$tool >/dev/null || { echo "error: $$tool not found; install it first" >&2; exit 2; }; done
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'from components.training.deepspeed import build_extension; build_extension()' >/dev/null
	$(BIN)/python -c 'from components.strategies.iterit import compile_ahead; compile_ahead()'
	$(BIN)/python -c 'from components.overlap.similarity_join import compile_ahead; compile_ahead()'
	@# the tables of this folder's Prefect store, for which the first run would wait 6 s; no other database is touched
	$(if $(PREFECT_API_URL),,env -u PREFECT_API_DATABASE_CONNECTION_URL -u PREFECT_SERVER_DATABASE_CONNECTION_URL \
		$(BIN)/prefect server database upgrade --yes >/dev/null)
	@touch $@

run: setup
	@$(BIN)/iterit run

check: setup
	@$(MAKE) --no-print-directory --jobs 2 lint unit

unit: setup
	@$(PYTEST) --dist load tests/unit

test: setup
	@$(PYTEST) --dist loadfile

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile

bench: setup
	$(BIN)/dvc repro --quiet select@1
	$(BIN)/python -m benchmarks $(if $(ALPACA),--alpaca $(ALPACA))

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# resolve again within the bounds of pyproject.toml; run everything before committing the result
lock: setup
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --group dev --no-annotate --no-header \
		--output-file requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock

clean:
	rm -rf $(VENV)
