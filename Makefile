# The two commands of a newcomer: `make demo` and `make test`. Everything else is listed by `make help`.
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DATA ?= ../shared/data
TWO := -n 2 --no-loadscope-reorder --durations=10  # tests in two processes; the ten slowest are named
SEQUENCE := deeppcb_20085 mtd paper_brg01 paper_flr01 paper_gla01 paper_zpb01
BESIDE := deeppcb_00041 paper_btn01 paper_fvn01

.PHONY: help setup demo test test-all test-long coverage check format lock results ablations continual continual-networks memory clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## make .venv with the pinned dependencies and everline itself

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "everline needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps uv==$(UV_VERSION)
	$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/everline
	@touch $@

demo: setup ## the main job on real solar cells: two lines learn, are versioned, killed, served (ARGS="--images 200")
	$(BIN)/everline demo $(ARGS)

test: setup ## the tests but for the slow ones (ARGS="-k log")
	$(BIN)/pytest $(TWO) -m "not slow" $(ARGS)

test-all: setup ## all tests, as CI runs them
	$(BIN)/pytest $(TWO) $(ARGS)

test-long: setup ## all tests at full size, one after the other (hours; docs/reliability.md says what that adds)
	$(BIN)/pytest --long --durations=40 $(ARGS)

coverage: setup ## which lines of everline no test runs, in processes that tests start, too
	$(BIN)/pytest $(TWO) --cov --cov-report=term:skip-covered $(ARGS)

check: setup ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV)/typing && ../bin/mypy --config-file everline/pyproject.toml $(addprefix -p everline.,methods platform deploy pipelines)

results: setup ## the tables of docs/results.md anew, on every folder of DATA (an hour and a half; goes on where it was stopped)
	$(BIN)/everline bench docs/plans/results.yaml --data $(wildcard $(DATA)/*/) --out build/results --tracking none \
	  --markdown docs/results.md --mark overview
	for protocol in online offline four-shots fewshot drift; do \
	  $(BIN)/everline compare build/results/$$protocol/*.json --markdown docs/results-by-task.md --mark $$protocol || exit 1; done

ablations: setup ## the papers' ablations in docs/results.md anew, on two folders of DATA (an hour)
	$(BIN)/everline bench docs/plans/lemo-table-6.yaml --data $(DATA)/mtd $(DATA)/deeppcb_20085 --out build/lemo --tracking none \
	  --markdown docs/results.md --mark lemo
	$(BIN)/everline bench docs/plans/kng-tables-3-4-5.yaml --data $(DATA)/mtd $(DATA)/deeppcb_20085 --out build/kng --tracking none \
	  --markdown docs/results.md --mark kng

continual: setup ## products in sequence, in docs/results.md and docs/results-continual.md, frozen features (an hour; goes on)
	$(BIN)/everline bench docs/plans/continual.yaml --data $(addprefix $(DATA)/,$(SEQUENCE)) --dataset elpv --set size=128 \
	  --out build/continual --tracking none --markdown docs/results.md --mark continual
	cd build/continual && for table in \
	  "table-5-2 single/padim multitask/padim naive/padim-latest class/padim-per-task class/padim-per-task-prior task/padim-per-task naive/padim-averaged naive/padim" \
	  "coreset single/coreset multitask/coreset naive/coreset replay-300/coreset replay-800/coreset class/coreset-routed" \
	  "patchcore single/patchcore-ema multitask/patchcore-ema naive/patchcore-ema replay-300/patchcore-ema replay-800/patchcore-ema" \
	  "lemo single/lemo multitask/lemo naive/lemo replay-300/lemo replay-800/lemo"; do \
	  set -- $$table; mark=$$1; shift; \
	  $(CURDIR)/$(BIN)/everline compare $$(printf '%s.json ' $$@) --markdown $(CURDIR)/docs/results-continual.md --mark $$mark || exit 1; done

build/teacher.safetensors:
	$(BIN)/everline pretrain teacher --images $(addprefix $(DATA)/,$(BESIDE)) --out $@ --width 0.25 --size 128 --steps 1200 --batch 8 --lr 1e-3

continual-networks: setup build/teacher.safetensors ## the same of efficientad and draem, on six folders (two hours; goes on)
	for plan in efficientad draem six; do \
	  $(BIN)/everline bench docs/plans/continual-$$plan.yaml --data $(addprefix $(DATA)/,$(SEQUENCE)) --set size=128 \
	    --out build/$$plan --tracking none --markdown docs/results.md --mark $$plan || exit 1; done
	for method in efficientad draem; do \
	  $(BIN)/everline compare $$(printf "build/$$method/%s/$$method.json " single multitask naive replay-300) \
	    --markdown docs/results-continual.md --mark $$method || exit 1; done
	$(BIN)/everline compare build/efficientad/replay-300/efficientad.json build/six/class/padim-per-task.json \
	  build/six/naive/padim-averaged.json build/draem/replay-300/draem.json build/six/naive/padim.json build/six/naive/coreset.json \
	  --markdown docs/results-continual.md --mark table-5-4

memory: setup ## how much memory is enough, in docs/results.md anew, on three folders of DATA (half an hour; goes on)
	@if test -e build/memory/sweep.json; then set -- --resume; else set -- --method lemo,coreset,kng --memory 100,300,800 \
	  --data $(addprefix $(DATA)/,mtd deeppcb_20085 deeppcb_00041); fi; \
	$(BIN)/everline sweep "$$@" --out build/memory --tracking none --markdown docs/results.md --mark memory

format: setup ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## pin everything anew (needs uv: make setup)
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" --extra demo --extra factory --extra dev pyproject.toml -o requirements.lock

clean: ## remove the environment and what tools left
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
