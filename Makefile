# Every target works alone on a fresh clone with nothing but Python: it installs what it needs first.

PYTHON3 ?= python3
JOBS ?= 2
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
INTEROP := .venv-interop

# The demo, run by `make demo`; huge pages make its steps an eighth shorter (docs/speed.md).
DEMO := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(PYTHON) -m prompt_tuning demo

# What the three locks have in common. `make lock UPGRADE=--upgrade` moves to the newest releases.
LOCK = $(PYTHON) -m uv pip compile setup.py --quiet --no-config $(UPGRADE) --universal \
	--python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock"

# Pyright runs on the locked Node.js, and does not ask the network for a newer version of itself.
export PYRIGHT_PYTHON_GLOBAL_NODE := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: dev demo test test-all test-interop format bench bench-interop docs lock wheel

dev: $(INSTALLED)

$(INSTALLED): requirements/cpu.txt setup.py
	@$(PYTHON3) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	"$(PYTHON3) is Python %d.%d, but 3.11, 3.12 or 3.13 is needed. Name one: make PYTHON3=python3.11" % v[:2])'
	$(PYTHON3) -m venv .venv
	$(PYTHON) -m pip install --require-hashes -r requirements/cpu.txt
	$(PYTHON) -m pip install --no-index --no-deps --no-build-isolation -e .
	touch $@

demo: $(INSTALLED)
	$(DEMO)

test: $(INSTALLED)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile -m "not slow and not interop"

test-all: $(INSTALLED)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile -m "not interop"

# Beside torch, transformers and PEFT, in an environment of its own.
test-interop: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m pytest tests/interop -m interop

$(INTEROP)/.installed: requirements/cpu.txt setup.py
	$(PYTHON3) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --require-hashes -r requirements/cpu.txt
	$(INTEROP)/bin/python -m pip install --no-build-isolation -e ".[interop]"
	touch $@

format: $(INSTALLED)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# Those that need neither data nor torch.
bench: $(INSTALLED)
	set -e; for name in compile_time load_memory train_step; do \
		$(PYTHON) benchmarks/$$name.py --quick; done

bench-interop: $(INTEROP)/.installed
	set -e; for name in decode peers; do \
		$(INTEROP)/bin/python benchmarks/$$name.py --quick; done

# The site, into site/index.html; a link that leads nowhere is an error.
docs: $(INSTALLED)
	$(PYTHON) -m mkdocs build --strict

lock: $(INSTALLED)
	$(LOCK) --extra dev --output-file requirements/cpu.txt
	$(LOCK) --extra cuda --constraint requirements/cpu.txt --output-file requirements/cuda.txt
	$(LOCK) --extra tpu --constraint requirements/cpu.txt --output-file requirements/tpu.txt

wheel: $(INSTALLED)
	$(PYTHON) -m build --no-isolation
