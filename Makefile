# make train   an environment in .venv with the requirements, then the default experiment
# make test    the same environment with the optional engines, then all checks and the whole suite: what CI runs
# make quick   one path through everything, in less than a minute
# make check   style (ruff), import contracts (import-linter) and types (mypy), without running anything
# make check-torch   the whole suite with another torch, in an environment of its own: make check-torch TORCH=2.15.0
# make schema  the JSON Schemas in setting/schema, after a change of a setting's keys or of a table
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV ?= .venv
TORCH ?= 2.15.0
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: train test suite quick check check-torch schema

train: $(VENV)/installed
	$(BIN)/python train.py

test: check suite

suite: $(VENV)/deploy
	$(PYTEST) -n auto --maxprocesses=4 --dist worksteal

quick: $(VENV)/deploy
	$(PYTEST) tests/test_quick.py

check: $(VENV)/deploy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

check-torch: .venv-$(TORCH)/constraints.txt
	$(MAKE) suite VENV=.venv-$(TORCH) CONSTRAINTS=$<

# torchvision follows from torch: each of its versions asks for one.
.venv-%/constraints.txt: constraints.txt
	mkdir -p $(@D)
	sed -E 's/^torch==.*/torch==$*/; /^torchvision==/d' $< > $@

schema: $(VENV)/installed
	$(BIN)/python -m setting.schema.generate

$(VENV)/installed: requirements.txt $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/deploy: $(VENV)/installed requirements-deploy.txt requirements-ray.txt requirements-executorch.txt requirements-litert.txt
	$(INSTALL) -r requirements-deploy.txt -r requirements-ray.txt
	$(INSTALL) --no-deps -r requirements-executorch.txt -r requirements-litert.txt
	touch $@
