# make demo, make test: both set everything up first, from nothing but Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/demo
QUICK_ON_RAY := tests/ray/test_deployment.py

.PHONY: demo test test-ray test-long test-gpu fuzz lint docs soak bench bench-scale bench-gpu install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf $(DEMO)
	@echo "== a generated log is divided into ten shards"
	$(BIN)/ray-eraser train --data synthetic --storage-path $(DEMO) --ray-address local
	@echo "== what user 1007 is recommended"
	$(BIN)/ray-eraser recommend --storage-path $(DEMO) --user-id 1007 --ray-address local
	@echo "== user 1007 asks to be forgotten"
	$(BIN)/ray-eraser unlearn --storage-path $(DEMO) --user-id 1007 --ray-address local
	@echo "== trained again from what remains, is every bit the same?"
	$(BIN)/ray-eraser audit --storage-path $(DEMO) --user-id 1007 --ray-address local

# Takes about nine minutes on two cores. Two tests at a time, except on Ray, which has processes of its own.
test: install lint
	$(BIN)/pytest -q -n 2 --dist loadfile -m "(not slow and not deep) or data" tests/test_*.py tests/unit
	$(BIN)/pytest -q -m "not slow and not deep" $(QUICK_ON_RAY)

# The other tests on Ray, and the deep ones, without the slow ones: half an hour.
test-ray: install
	$(BIN)/pytest -q -n 2 --dist loadfile -m "deep and not slow" tests/unit
	$(BIN)/pytest -q -m "not slow" tests/ray tests/jobs $(QUICK_ON_RAY:%=--ignore=%)
	$(BIN)/pytest -q -m "deep and not slow" $(QUICK_ON_RAY)
	$(BIN)/pytest -q -m slow tests/jobs/test_jobs.py

# The slow tests: kill -9 at every step, two coordinators stopped at every step, a small soak, sweeps, submitted jobs, several nodes.
test-long: install
	$(BIN)/pytest -q -n 2 -m "slow and not data" tests/test_*.py tests/unit
	$(BIN)/pytest -q -m slow tests/ray tests/jobs
	$(BIN)/pytest -q tests/cluster

# The tests that need a GPU: four minutes. Without .venv they use the system's python3, whose libraries may be other versions than
# the pinned ones and warn of other things.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
GPU_PYTEST := $(GPU_PYTHON) -m pytest -q $(if $(wildcard $(BIN)/python),,-W default)
test-gpu:
	@$(GPU_PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("error: PyTorch sees no GPU here: run make test-gpu on a machine that has one, with a CUDA build of PyTorch")'
	$(GPU_PYTEST) -m gpu $$(grep -rlE 'mark\.gpu|on_gpu|TORCH_DEVICES' --include='test_*.py' tests)

# Property tests with random examples. `make test` uses the same examples every time.
fuzz: install
	RAY_ERASER_EXAMPLES=fuzz $(BIN)/pytest -q -n 2 --dist loadfile -m "not slow" tests/unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in .venv/site; a warning is an error. Needs no network. To read it: python -m http.server -d .venv/site
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# About ten minutes: two thousand requests while processes are killed; exits with 1 where a promise was broken.
soak: install
	$(BIN)/python tests/benchmarks/soak.py --seed 0 --requests 2000 --shards 8

# Seconds of every part in one process; BENCH="--data ml-1m --report tests/benchmarks/results" for a log of your own.
BENCH ?= --data synthetic
bench: install
	$(BIN)/python tests/benchmarks/bench.py $(BENCH)
	$(BIN)/python tests/benchmarks/roofline.py $(BENCH)

# A generated log of SCALE interactions, from Parquet parts to receipts, beside a full retraining.
SCALE ?= 10000000
bench-scale: install
	test -d $(VENV)/biglog-$(SCALE) || $(BIN)/python tests/benchmarks/biglog.py --interactions $(SCALE) --output $(VENV)/biglog-$(SCALE)
	$(BIN)/python tests/benchmarks/scale.py --data $(VENV)/biglog-$(SCALE) --set aggregation.sweeps=0 --full

# What a GPU does faster, and how close to its limits it comes: five minutes on one.
BENCH_GPU ?= --report tests/benchmarks/results
bench-gpu:
	$(GPU_PYTHON) tests/benchmarks/gpu.py $(BENCH_GPU)

clean:
	rm -rf $(VENV)
