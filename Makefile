# Everything runs in .venv with the pinned versions of constraints.txt; where wheels come from is pip's own business.
PYTHON ?= python3
BIN := .venv/bin
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo docs test test-s3-real lint check ui bench-influence bench-bandit bench-selection bench-crash clean

demo: .venv/installed   ## the whole method on text this machine has already
	$(BIN)/quad demo

test: .venv/installed   ## every test
	$(THREADS) $(BIN)/pytest -n 2 --dist loadfile

test-s3-real: .venv/installed   ## the store's tests on a Ceph object gateway (Debian: ceph-mon ceph-osd ceph-mgr radosgw)
	tests/storage/on_ceph.sh $(BIN)/pytest -k s3 tests/storage

lint: .venv/installed   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test        ## what CI runs

docs: .venv/installed   ## the configuration reference, from the models
	$(BIN)/quad keys --markdown > docs/configuration.md

ui: .venv/installed     ## Prefect's UI on loopback, with pools, deployments and workers
	infra/ui.sh

bench-crash: .venv/installed   ## 30 kills at random moments: the same selection, nothing scored twice
	$(THREADS) $(BIN)/python tests/benchmarks/crash_resume.py --kills 30 --json

bench-influence: .venv/bench-installed   ## fit and scoring beside kronfluence
	$(BIN)/python tests/benchmarks/bench_influence.py --json

bench-bandit: .venv/installed   ## share of the achievable influence at 5, 10 and 16 % of documents scored
	$(BIN)/python tests/benchmarks/bench_bandit.py --json

bench-selection: .venv/installed   ## train on what Quad and nine other methods choose, on equal tokens
	$(THREADS) $(BIN)/python tests/benchmarks/bench_selection.py --out tests/benchmarks/results

clean:
	rm -rf .venv demo

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# Without its dependencies: it asks for torchvision, which it does not import and which would replace torch.
.venv/bench-installed: .venv/installed
	$(BIN)/pip install --quiet --no-deps kronfluence==1.0.1
	$(BIN)/pip install --quiet -c constraints.txt accelerate einops einconv opt-einsum
	touch $@
