# make train   an environment, the requirements, then the default experiment
# make test    the same environment and the optional engines, then the whole suite
# make check   style (ruff), then the suite
# make schema  the JSON Schemas in setting/schema, after a change of utils/config.py or of a table
PYTHON ?= python3
BIN := .venv/bin
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist worksteal

.PHONY: train test check schema

train: .venv/installed
	$(BIN)/python train.py

test: .venv/installed .venv/deploy
	$(TESTS)

check: .venv/installed .venv/deploy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TESTS)

schema: .venv/installed
	$(BIN)/python -m setting.schema.generate

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/deploy: .venv/installed requirements-deploy.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-deploy.txt
	touch $@
