# Speedclaim. `make` lists the verbs. PYTHON=/path/to/python uses that interpreter as it is (no environment is made).

VENV := .venv
ifdef PYTHON
  PY := $(PYTHON)
  READY :=
else
  PY := $(VENV)/bin/python
  READY := $(VENV)/.ready
endif
BASE ?= python3
OUT ?= results
BENCH_FLAGS := $(if $(QUICK),--quick) $(if $(TIER),--tier $(TIER)) $(if $(BUDGET),--budget-s $(BUDGET)) $(if $(DEVICE),--device $(DEVICE))

.DEFAULT_GOAL := help
.PHONY: help install bench data train test check claims report doctor list asv bench-pytest clean

help: ## this list
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*?## "} {printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  Variables: QUICK=1 (bench in 3 minutes), TIER=quick|standard|full, BUDGET=seconds, DEVICE=cpu|cuda,"
	@echo "             PYTHON=/path/to/python (use that interpreter as it is), OUT=folder of the records"

install: $(READY) ## make .venv from the pinned constraints (done by every verb that needs it)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(BASE) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Speedclaim needs Python 3.11 or newer; $(BASE) is $$($(BASE) -V 2>&1). Use make BASE=/path/to/python3.11"; exit 2; }
	@echo "creating $(VENV) (a few minutes the first time: torch is large)"
	$(BASE) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,data,dev]'
	@touch $@

bench: $(READY) ## measure every suite this machine can run, judge the claims, render reports/html/index.html
	$(PY) -m harness bench --out $(OUT) $(BENCH_FLAGS)

data: $(READY) ## fetch what the default training tier needs (digits, fashion-mnist, cifar10, sotu), or NAMES="mnist …"
	$(PY) -m harness data fetch $(NAMES)

train: $(READY) ## train TIER's workloads to their targets, or WORKLOAD=name METHODS="sgd muon" SEEDS=6; at most BUDGET=3300 s
	$(PY) -m harness train $(WORKLOAD) $(METHODS) --out $(OUT) $(if $(TIER),--tier $(TIER)) $(if $(SEEDS),--seeds $(SEEDS)) \
	  --budget-s $(or $(BUDGET),3300) $(if $(DEVICE),--device $(DEVICE))

test: $(READY) ## the test suite, on every core when pytest-xdist is there
	OMP_NUM_THREADS=1 $(PY) -m pytest $(shell $(PY) -c 'import xdist' 2>/dev/null && printf '%s' '-n logical --maxprocesses 8 --dist worksteal')

check: $(READY) ## ruff, mypy, import rules, house tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(PY) -m pytest -q tests/house

claims: $(READY) ## the ledger of published claims with verdicts
	$(PY) -m harness claims

report: $(READY) ## render the report from results/ and reports/records/
	$(PY) -m harness report

doctor: $(READY) ## what this machine has and which methods can run here
	$(PY) -m harness doctor

list: $(READY) ## the catalogue of methods
	$(PY) -m harness list

asv: $(READY) ## measure this clean commit with asv, save it, publish the history; CASES=regex for a part
	$(PY) -m harness.adapters.asv $(if $(CASES),--bench '$(CASES)')

bench-pytest: $(READY) ## the cases as pytest-benchmark benchmarks; CASES=expression, TIER=, FLAGS="--benchmark-autosave"
	$(if $(TIER),SPEEDCLAIM_TIER=$(TIER)) $(PY) -m pytest suites/micro/bench_cases.py -p no:cacheprovider \
	  -W 'ignore:Benchmark fixture was not used' \
	  --benchmark-sort=mean --benchmark-columns=median,iqr,min,rounds $(if $(CASES),-k '$(CASES)') $(FLAGS)

clean: ## remove the environment, kernels built in this checkout, caches and rendered pages; results/ is kept
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache reports/html build *.egg-info
	rm -f $(foreach kind,amm-*.so amm-*.json .building-*.so,methods/approximate_matmul/native/$(kind))
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
