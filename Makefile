# Everything here works on a fresh checkout: each target first installs what it needs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test browser test-fast lint docs bench results clean

help:
	@echo "make demo       draw six prompts with a model of every family and say where contact sheet and report are"
	@echo "make test       the whole test suite"
	@echo "make test-fast  the tests that take less than a few seconds each"
	@echo "make lint       style, types and import directions"
	@echo "make docs       guides, tour and reference as a site: open site/index.html"
	@echo "make bench      seconds for a cold and a warm picture on this machine"
	@echo "make results    results/*.csv, cards and the README's scores, from what the configs of weights/ hold"
	@echo "make clean      remove the environment and everything built"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@ $(VENV)/installed

DEMO := "a large pink butterfly on a cream background, cartoon" \
	"a red star above a blue car" \
	"three green mushrooms on a gray background" \
	"a small yellow cat on a night background, sketch" \
	"粉色的蝴蝶,小精靈,卡通" \
	"蓝色的房子在红色的星星的左边"

demo: $(VENV)/installed
	@$(BIN)/zoo generate --model stable-diffusion-small -n 4 --out outputs/demo $(DEMO)
	@echo "The last file is the contact sheet. Now the same prompts by every family:"
	@$(BIN)/zoo compare $(DEMO) --models stable-diffusion-small imagen-small dalle2-small gan-small \
		--out outputs/side-by-side

test: $(VENV)/installed-dev browser
	$(BIN)/python -m pytest

# The web page is tested in a real browser; where there is none, Debian's is installed if that is possible.
browser:
	@[ -n "$$CHROMIUM" ] || command -v chromium chromium-browser google-chrome >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
			&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
		|| { echo "The page is tested in Chromium: install it, or name one: make test CHROMIUM=/path/to/chrome"; exit 1; }

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-docs
	$(BIN)/python docs/pages.py build/docs
	$(BIN)/zensical build --strict --config-file build/docs/zensical.toml
	rm -rf site
	mv build/docs/site site

bench: $(VENV)/installed
	$(BIN)/python benchmarks/speed.py

results: $(VENV)/installed-dev
	$(BIN)/python -m zoo.train.results

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
