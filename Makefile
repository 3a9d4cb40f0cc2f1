# make demo     install, run the whole chain on the embedded default, show the report
# make test     install, run the tests
# make check    lint, format, types, fast tests
# make slurm-test  the tests on a real Slurm, which is started on this machine and stopped again (Debian, root)
# make nightly  the tests that take minutes
# make bench    what is timed, as ratios; how cost grows; memory against what is told (benchmarks/README.md)
# make bench-report  the report of ten thousand run folders: time and memory (minutes, 8 GB of disk)
# make bench-smoke  its short cases; fails where one has become twice as slow beside what it is measured against
# make golden   record the golden losses of this kind of processor anew
# make golden-sbatch  record the scripts for sbatch anew
# make clean    remove what the above made (other runs stay)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKERS ?= 2
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
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m "not nightly"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m "not nightly and not commands and not slurm"

slurm-test: SHELL = /bin/bash
slurm-test: $(INSTALLED)
	trap 'slurm/dev_cluster.sh stop $(SLURM_DIR)' EXIT; slurm/dev_cluster.sh start $(SLURM_DIR) \
		&& . $(SLURM_DIR)/env.sh && $(BIN)/python -m pytest tests/slurm

nightly: $(INSTALLED)
	$(BIN)/python -m pytest -m nightly

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/parts.py
	$(BIN)/python benchmarks/shares.py
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
