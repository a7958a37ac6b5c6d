# Each target installs what it needs in .venv. CI runs `make check` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SITE   := .venv-site
READY  := $(VENV)/.ready
# two test processes with one thread each; the quick tests must not depend on the machine's core count
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: setup demo test test-slow test-browser test-gpu bench-gpu coverage check format docs site bench bench-data bench-train clean help

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(READY)  ## create .venv with the tested versions

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)   ## convert SmolLM2, fine-tune, merge, release int8, ask both engines (about 10 minutes)
	$(BIN)/python recipes/quickstart/demo.py

test: $(READY)   ## run the quick tests
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow" tests

test-slow: $(READY)  ## run the tests that take minutes or need the real model
	$(TEST_ENV) $(BIN)/python -m pytest -m slow tests

test-browser: $(READY)  ## run all tests of the pages in Chromium
	$(TEST_ENV) $(BIN)/python -m pytest tests/system/test_chat_browser.py tests/system/test_chat_accessibility.py \
		tests/system/test_chat_visitors.py tests/system/test_translator_browser.py

HAS_GPU := $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"
test-gpu: $(READY)  ## run the tests that need a CUDA card
	@if $(HAS_GPU); then $(BIN)/python -m pytest tests/gpu; \
	else echo "The tests of tests/gpu need a CUDA card, and there is none: nothing was tested."; fi

bench-gpu: $(READY)  ## measure fine-tuning and generation on a CUDA card, beside transformers + peft
	$(BIN)/python docs/benchmarks/gpu.py
	$(BIN)/python docs/benchmarks/gpu_generation.py

coverage: $(READY)  ## report the lines that the quick tests run, including started commands
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow" --cov=onmt_llm --cov-report=term:skip-covered tests

check: $(READY)  ## check formatting, lint, types, import layers, structure, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/structure.py -check
	$(BIN)/python docs/generate.py --check

format: $(READY) ## format and fix the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)   ## write docs/reference/ from the schema
	$(BIN)/python docs/generate.py

site: $(SITE)/.ready  ## write the documents as a site to build/site
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build

$(SITE)/.ready: docs/site/requirements.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --quiet --disable-pip-version-check -r docs/site/requirements.txt
	@touch $(SITE)/.ready

bench: $(READY)  ## measure start-up times; results go to docs/benchmarks/
	$(BIN)/python docs/benchmarks/start.py

# real text from which lines are made; OPENNMT, EOLE and DATASETS are Python interpreters with these programs
BENCH_TEXT ?= $(wildcard ../shared/data/en-de/*-train.txt ../shared/data/wikitext2/*.raw)
bench-data: $(READY)  ## measure speed and memory of the data pipeline, compared with the given other programs
	$(BIN)/python docs/benchmarks/data.py -text $(BENCH_TEXT) $(if $(OPENNMT),-opennmt $(OPENNMT)) \
		$(if $(EOLE),-eole $(EOLE)) $(if $(DATASETS),-datasets $(DATASETS))

BENCH_PAIRS ?= ../shared/data/en-de
bench-train: $(READY)  ## measure speed, memory and loss of training, compared with transformers + peft, and with OpenNMT-py if given
	$(BIN)/python docs/benchmarks/training.py -text $(BENCH_TEXT) $(if $(OPENNMT),-opennmt $(OPENNMT))
	$(if $(OPENNMT),$(BIN)/python docs/benchmarks/seq2seq_training.py -data $(BENCH_PAIRS) -opennmt $(OPENNMT))

clean:
	rm -rf $(VENV) $(SITE) .cache .coverage* build *.egg-info
