# make demo, make test: both set everything up first, from nothing but Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/demo

.PHONY: demo test lint soak install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf $(DEMO)
	@echo "== ten shards learn from a generated log"
	$(BIN)/python jobs/train.py --data synthetic --storage-path $(DEMO) --ray-address local
	@echo "== what user 1007 is recommended"
	$(BIN)/python jobs/recommend.py --storage-path $(DEMO) --user-id 1007 --ray-address local
	@echo "== user 1007 asks to be forgotten"
	$(BIN)/python jobs/unlearn.py --storage-path $(DEMO) --user-id 1007 --ray-address local
	@echo "== trained again from what remains, is every bit the same?"
	$(BIN)/python jobs/audit.py --storage-path $(DEMO) --user-id 1007 --ray-address local

test: install lint
	$(BIN)/pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# About ten minutes: two thousand requests while processes are killed; exits with 1 where a promise was broken.
soak: install
	$(BIN)/python tests/benchmarks/soak.py --seed 0 --requests 2000 --shards 8

clean:
	rm -rf $(VENV)
