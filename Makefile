# make train   an environment, the requirements, then the default experiment
# make test    the same environment, then the whole suite
# make check   style (ruff), then the suite
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test check

train: .venv/installed
	$(BIN)/python train.py

test: .venv/installed
	$(BIN)/python -m pytest -q

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
