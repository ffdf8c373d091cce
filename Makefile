# make demo: try every probe method on the digits.  make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint evidence docs lock clean

$(VENV)/.user: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "etude needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[text,site]"
	touch $@

$(VENV)/.dev: $(VENV)/.user
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[text,site,postgres,ray,milvus,dev]"
	touch $@

demo: $(VENV)/.user
	$(BIN)/etude compare digits --jobs 2

test: $(VENV)/.dev lint
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Measures every claim again (hours): rows to the ledger, findings to evidence/.
evidence: $(VENV)/.dev
	$(BIN)/etude verify --all --evidence evidence

docs: $(VENV)/.dev
	$(BIN)/python docs/build.py

lock: $(VENV)/.dev
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) build dist
