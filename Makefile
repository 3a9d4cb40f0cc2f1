# make demo           install, run the whole chain on synthetic data, write the report
# make test           install, run all tests except the nightly ones
# make check          lint, format, types, fast tests
# make slurm-test     tests on a real Slurm, started on this machine and stopped afterwards (Debian or Ubuntu, root)
# make nightly        tests that take minutes
# make bench          measure ratios of time and memory, growth of cost, memory against the estimate (benchmarks/README.md)
# make bench-report   time and memory of the report of 1,000 run folders (minutes, 1 GB of disk)
# make bench-smoke    short benchmarks; fails where one has become twice as slow relative to its reference
# make golden         record the golden losses of this type of processor
# make golden-sbatch  record the golden batch scripts
# make clean          remove what the targets above made, except runs other than the demo's

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# processes of the tests: one more than two cores, since tests on Slurm mostly wait
WORKERS ?= 3
SLURM_DIR ?= /tmp/metapt-slurm
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: demo test check slurm-test nightly bench bench-report bench-smoke golden golden-sbatch clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,report]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m metapt.submit grid=demo cluster=local
	$(BIN)/python analysis/report.py runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --durations=25 -m "not nightly"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m "not nightly and not commands and not slurm"

slurm-test: SHELL = /bin/bash
slurm-test: $(INSTALLED)
	trap 'slurm/dev_cluster.sh stop $(SLURM_DIR)' EXIT; slurm/dev_cluster.sh start $(SLURM_DIR) \
		&& . $(SLURM_DIR)/env.sh && $(BIN)/python -m pytest tests/slurm

nightly: $(INSTALLED)
	$(BIN)/python -m pytest -m nightly --timeout=7200

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/parts.py
	$(BIN)/python benchmarks/terms.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/tagging.py
	$(BIN)/python benchmarks/projection.py

bench-report: $(INSTALLED)
	$(BIN)/python benchmarks/report.py

bench-smoke: $(INSTALLED)
	$(BIN)/python benchmarks/run.py smoke

golden: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks $(BIN)/python tests/golden.py

golden-sbatch: $(INSTALLED)
	$(BIN)/python tests/golden_sbatch.py

clean:
	rm -rf $(VENV) runs/demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
