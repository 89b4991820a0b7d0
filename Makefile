# `make demo` and `make test` work in a bare clone: each makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help demo test lint bench report clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

.venv/installed-bench: .venv/installed requirements-bench.txt
	$(BIN)/python -m pip install -r requirements-bench.txt
	touch $@

demo: .venv/installed ## a short run of the experiments, and the page that shows what came out
	$(BIN)/python pruning/run.py --config configs/pruning/quick.yaml --results-dir results/demo
	$(BIN)/python vae/train.py --config configs/vae/quick.yaml --results-dir results/demo
	$(BIN)/python rl/train_sac_icm.py --config configs/rl/quick.yaml --results-dir results/demo
	@echo "The whole studies: $(BIN)/python pruning/run.py,"
	@echo "$(BIN)/python vae/study.py --config configs/vae/study_reference.yaml"
	@echo "and $(BIN)/python rl/train_sac_icm.py --config configs/rl/stacked.yaml"
	@echo "TensorBoard: $(BIN)/tensorboard --logdir results. The report of these runs, to open in a browser:"
	@$(BIN)/python -m common.report results/demo

report: .venv/installed ## one page of the committed reference results: results/reference.html
	$(BIN)/python -m common.report results/reference --output results/reference.html

test: .venv/installed-dev ## the tests; those on real data run when DATA_DIR or ../shared/data is there
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/installed-dev ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/installed-bench ## speed beside plain loops, the naive scan, Pythae, SB3 and SBX, each comparison in one run
	mkdir -p results/benchmarks
	$(BIN)/python benchmarks/pruning_speed.py --output results/benchmarks/pruning_speed.json
	$(BIN)/python benchmarks/vae_speed.py --output results/benchmarks/vae_speed.json
	$(BIN)/python benchmarks/vae_parallel.py
	$(BIN)/python benchmarks/rl_speed.py --output results/benchmarks/rl_speed.json

clean: ## removes the environment and caches, no results
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
