# Each target sets up .venv by itself; what is there already is left alone.
PYTHON ?= $(shell for v in 3.12 3.11 3.13 3.10; do python$$v -c '' 2>/dev/null && echo python$$v && exit; done; echo python3)
RECIPE ?= auto
RUN ?= runs/$(RECIPE)
DATA ?= auto
BIN := .venv/bin
PEERS := from importlib.metadata import requires; \
  print(*(line.split(';')[0] for line in requires('deepcomp') if 'extra == \"bench\"' in line))

.PHONY: run test test-all lint figures records bench bench-gpu embedded docs fuzz threads clean

run: .venv/installed
	$(BIN)/python train_full.py --recipe $(RECIPE) --data $(DATA) --run $(RUN)
	$(BIN)/python prune.py --run $(RUN)
	$(BIN)/python quantize.py --run $(RUN)
	$(BIN)/python deploy.py --run $(RUN)

test: .venv/installed
	$(BIN)/python -m pytest

test-all: .venv/installed
	$(BIN)/python -m pytest -m ''

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

figures: .venv/installed
	$(MAKE) run RECIPE=seed
	$(MAKE) run RECIPE=reference
	$(BIN)/python tools/pictures.py --out imgs runs/seed runs/reference

# Records are of full MNIST: auto might settle for less.
records: DATA = mnist
records: .venv/installed
	$(BIN)/python benchmarks/records.py --data $(DATA)

bench: .venv/bench
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/clustering.py
	$(BIN)/python benchmarks/vgg.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python tools/speed_plot.py runs/speed.json --out imgs/speed.png

bench-gpu: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	$(BIN)/python benchmarks/gpu.py

embedded: .venv/installed
	$(BIN)/python -m benchmarks.embedded

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python tools/reference.py --out docs

fuzz: .venv/installed
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.structures

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

# One by one: without a peer that cannot be installed the benchmark still runs, and names it.
.venv/bench: .venv/installed
	for peer in $$($(BIN)/python -c "$(PEERS)"); do \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$peer" || echo "$$peer is left out."; \
	done
	touch $@

threads: .venv/installed
	THREADS_SECONDS=10 $(BIN)/python -m pytest -n 0 tests/runtime/test_engine.py -k many_threads

clean:
	rm -rf .venv runs
