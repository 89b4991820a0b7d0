# `make demo`, `make lint` and `make test` work in a bare clone: each makes .venv and installs what it needs.
SHELL := bash -o pipefail
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help demo demo-models demo-pruning demo-vae-rl test test-all test-faults lint bench report clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install -e '.[bench]'
	touch $@

# Two processes with half of the CPU threads each are faster than one after the other with all of them.
HALF := $(shell echo $$(( ($$(nproc 2>/dev/null || echo 2) + 1) / 2 )))
QUICK = --config configs/$(1)/quick.yaml --results-dir results/demo --threads $(HALF) 2>&1 \
	| stdbuf -oL tr '\r' '\n' | sed -u 's/^/$(1) | /'

demo: .venv/installed ## the committed models at work, a short run of each experiment, and its page: about 5 minutes
	@$(MAKE) --no-print-directory demo-models
	@$(MAKE) --no-print-directory --jobs 2 demo-pruning demo-vae-rl
	@$(BIN)/python -m common.report results/demo
	@echo
	@echo "Open the page above in a browser. The figures of each run are in results/demo/<experiment>/<run>/figures/."
	@echo "results/demo/hopper.gif and digits.png are what the committed agent and VAE in models/ did."
	@echo "Next, the whole experiments (on 2 cores 36 minutes, 8 minutes, and 100,000 steps at about 97 a second):"
	@echo "  $(BIN)/python pruning/run.py"
	@echo "  $(BIN)/python vae/train.py --arch conv --prior gaussian12 --latent 16"
	@echo "  $(BIN)/python rl/train_sac_icm.py --icm stacked"
	@echo "and what they record while they train: $(BIN)/tensorboard --logdir results"

demo-models: .venv/installed
	@mkdir -p results/demo
	@$(BIN)/python rl/play.py models/sac-hopper --video results/demo/hopper.gif
	@$(BIN)/python vae/sample.py models/vae-mnist --out results/demo/digits.png

demo-pruning: .venv/installed
	@($(BIN)/python pruning/evaluate.py models/vgg11-cifar10 --threads $(HALF) 2>&1 \
		|| echo "Without CIFAR-10 the committed network is not evaluated; the demo goes on.") | stdbuf -oL tr '\r' '\n' | sed -u 's/^/pruning | /'
	@$(BIN)/python pruning/run.py $(call QUICK,pruning)

demo-vae-rl: .venv/installed
	@$(BIN)/python vae/train.py $(call QUICK,vae)
	@$(BIN)/python rl/train_sac_icm.py $(call QUICK,rl)

report: .venv/installed ## the report page of the committed reference results: results/reference.html
	$(BIN)/python -m common.report results/reference --output results/reference.html

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: .venv/installed-dev ## the tests to run after each change: about 2 minutes on 2 cores
	$(PYTEST) -m "not slow and not cluster and not browser and not real_data and not faults"

test-all: .venv/installed-dev ## every test; those on real data run when DATA_DIR or ../shared/data is there
	$(PYTEST) -m "not faults"

test-faults: .venv/installed-dev ## kills, full disks, damaged files (as root): FAULT_TRIALS=0.1 makes a tenth of the trials
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults tests/faults

lint: .venv/installed-dev ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/installed-bench ## speed beside plain loops, the naive scan, Pythae, SB3 and SBX, each comparison in one run
	mkdir -p results/benchmarks
	$(BIN)/python benchmarks/pruning_speed.py --output results/benchmarks/pruning_speed.json
	$(BIN)/python benchmarks/filter_speed.py --threads 1 --output results/benchmarks/filter_speed.json
	$(BIN)/python benchmarks/vae_speed.py --output results/benchmarks/vae_speed.json
	$(BIN)/python benchmarks/vae_parallel.py
	$(BIN)/python benchmarks/rl_speed.py --output results/benchmarks/rl_speed.json
	$(BIN)/python benchmarks/critic_speed.py --threads 1 --output results/benchmarks/critic_speed.json
	$(BIN)/python benchmarks/busy_machine.py --output results/benchmarks/busy_machine.json

clean: ## removes the environment and caches, no results
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
