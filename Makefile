# make run: set up, then run the pipeline once.  make test: set up with the development tools, then every check.
# make quick: format, lint, types, import rules and unit tests, in about two minutes.
# make crash: over a hundred runs on a tiny stream, each killed at random and resumed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# uv takes seconds where pip takes minutes. It reads its own variable for a folder of local wheels: pip's setting, where
# there is one, is handed on. Where uv cannot reach the registry (pip's own configuration may name another), pip tries.
install = UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" VIRTUAL_ENV=.venv \
	$(BIN)/uv pip install -q --system-certs --compile-bytecode -c constraints.txt -e '$(1)' || \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '$(1)'

.PHONY: run test types behaviour quick units crash format clean

run: .venv/run.stamp
	@$(BIN)/intaglio run

test: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	@# Side by side: with nothing cached mypy takes minutes, on one core.
	@$(MAKE) --no-print-directory --jobs 2 types behaviour

types: .venv/test.stamp
	$(BIN)/mypy

behaviour: .venv/test.stamp
	@# The files that take minutes come first: xdist's own order begins with many small tests and ends with those.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term --cov-fail-under=90 tests/system tests/crash tests/flows tests/components tests/contract

# While one works: all checks but the tests that start processes.
quick: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory --jobs 2 types units

units: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/components/data tests/components/evaluation \
		tests/components/modules tests/components/retrieval tests/components/signatures tests/flows/registry/test_gates.py \
		tests/flows/tasks tests/contract/test_style.py tests/contract/test_dependencies.py

crash: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash.random_kills --runs 110 --flows 10

format: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*

.venv/base.stamp:
	@echo "setting up .venv (once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 to 3.13; try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9
	@touch $@

.venv/run.stamp: .venv/base.stamp pyproject.toml constraints.txt
	@echo "installing from constraints.txt"
	@$(call install,.)
	@touch $@

.venv/test.stamp: .venv/base.stamp pyproject.toml constraints.txt
	@echo "installing from constraints.txt, with the development tools"
	@$(call install,.[dev])
	@touch $@ .venv/run.stamp
