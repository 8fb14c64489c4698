# Eight upkeep verbs. Each sets up what it needs; continuous integration calls these and nothing else.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo
ACCEPT_GEMMA_TERMS ?= no
SMOLLM2 := runs/weights/SmolLM2-135M-Instruct.Q4_1.gguf
GEMMA := runs/weights/gemma-3-270m-q4_k_m.gguf

.PHONY: demo test check fix bench real torture docs

# Goes on with what an interruption left; begins anew where $(OUT) holds a demo of other settings (refused with 2).
demo: .venv/ready
	$(BIN)/nucleate reproduce --size tiny --out $(OUT) --resume || \
	{ test $$? -eq 2 && $(BIN)/nucleate reproduce --size tiny --out $(OUT) --overwrite; }

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready
	for one in benchmarks/*.py; do $(BIN)/python $$one || exit 1; done

# Google's terms are shown by `python benchmarks/fetch_models.py gemma3-270m runs/weights`.
real: .venv/ready
	$(BIN)/python benchmarks/fetch_models.py smollm2 runs/weights
ifeq ($(ACCEPT_GEMMA_TERMS),yes)
	$(BIN)/python benchmarks/fetch_models.py gemma3-270m runs/weights --accept-gemma-terms
	$(BIN)/nucleate probe $(SMOLLM2) $(GEMMA) natural --out runs/real-both --resume
else
	@echo "Gemma 3 270M is left out: make real ACCEPT_GEMMA_TERMS=yes accepts its terms and probes it too"
	$(BIN)/nucleate probe $(SMOLLM2) natural --out runs/real --resume
endif

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Minutes of each campaign; called again it goes on where it stopped. The results stand in runs/torture.
MINUTES ?= 2
SEED ?= 0
CAMPAIGNS := kills power faults malformed malformed_commands properties mutants hostile_page
torture: .venv/ready
	for one in $(CAMPAIGNS); do $(BIN)/python benchmarks/torture/$$one.py --minutes $(MINUTES) --seed $(SEED) || failed=1; done; \
	$(BIN)/python benchmarks/torture/table.py --out runs/torture/torture.md; exit $${failed:-0}
