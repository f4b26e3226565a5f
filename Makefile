# make train   an environment in .venv with the requirements, then the default experiment
# make test    the same environment with the optional engines, then all checks and the whole suite: what CI runs
# make quick   one path through everything, in less than a minute
# make check   style (ruff), import contracts (import-linter) and types (mypy), without running anything
# make schema  the JSON Schemas in setting/schema, after a change of a setting's keys or of a table
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: train test quick check schema

train: .venv/installed
	$(BIN)/python train.py

test: check
	$(PYTEST) -n auto --maxprocesses=4 --dist worksteal

quick: .venv/deploy
	$(PYTEST) tests/test_quick.py

check: .venv/deploy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

schema: .venv/installed
	$(BIN)/python -m setting.schema.generate

.venv/installed: requirements.txt $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	touch $@

.venv/deploy: .venv/installed requirements-deploy.txt requirements-ray.txt requirements-executorch.txt requirements-litert.txt
	$(INSTALL) -r requirements-deploy.txt -r requirements-ray.txt
	$(INSTALL) --no-deps -r requirements-executorch.txt -r requirements-litert.txt
	touch $@
