# Every target sets up what it needs: `make figure` and `make test` work in a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready

.PHONY: help figure figures benchmarks peers test test-all lint format lock clean
.DELETE_ON_ERROR:

help:
	@echo "make figure    the headline figure, from real data, into figures/"
	@echo "make figures   every experiment of the study;  make benchmarks  those of speed"
	@echo "make peers     PyTorch, BackPACK and Opacus, which kernel_speed then runs beside jaxsgd"
	@echo "make test      the test suite;  make test-all  with the long tests"
	@echo "make lint      ruff and mypy --strict;  make format  rewrites"
	@echo "make lock      resolve requirements.lock anew"
	@echo "make clean     remove .venv, .venv-peers and caches"

figure: $(READY)
	$(BIN)/python -m experiments variance_vs_batch_size

figures: $(READY)
	$(BIN)/python -m experiments study

benchmarks: $(READY)
	$(BIN)/python -m experiments benchmarks

peers: $(PEERS_READY)

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 \
	  --extra experiments --group dev --generate-hashes --upgrade --quiet \
	  --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache dist build

# The stamp is touched last, so an interrupted installation is taken up again, and a finished one is
# left alone until the lock file or the package's own metadata change.
$(READY): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { \
	  echo "jaxsgd needs Python 3.11 or newer, and there is no '$(PYTHON)': install one, or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxsgd needs Python 3.11 or newer, and '$(PYTHON)' is older ($$($(PYTHON) --version 2>&1)): install one, or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# PyPI's torch for Linux brings gigabytes of CUDA libraries; a wheel torch==2.13.0+cpu that pip can find is preferred.
$(PEERS_READY): experiments/peers.txt | $(READY)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r experiments/peers.txt
	@touch $@
