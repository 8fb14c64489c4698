# Six upkeep verbs. Each sets up what it needs; continuous integration calls these and nothing else.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo

.PHONY: demo test check fix bench real

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

real: .venv/ready
	$(BIN)/python benchmarks/fetch_smollm2.py runs/weights
	$(BIN)/nucleate probe runs/weights/SmolLM2-135M-Instruct.Q4_1.gguf natural --out runs/real --resume

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
