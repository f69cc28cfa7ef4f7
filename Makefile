# make demo   install and watch the bundled policy work: a success table and videos in outputs/demo
# make test   install and run every test
# make check  ruff and mypy
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROWSER_PACKAGES := chromium-headless-shell  # in which the tests look at the report of an evaluation, on Debian
OPENPI_CLIENT := openpi-client==0.1.2  # talks to pi0 serve in the tests; it asks for numpy<2 and works with 2
GL_PACKAGES := libegl1 libgl1 libgl1-mesa-dri libglib2.0-0  # for off-screen rendering and OpenCV, on Debian

.PHONY: demo test check clean

demo: $(STAMP)
	$(BIN)/pi0 eval --policy mini --task all --episodes 10 --out outputs/demo

test: $(STAMP)
	@command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y --no-install-recommends $(BROWSER_PACKAGES); } \
	  || $(BIN)/playwright install --only-shell chromium \
	  || echo "No Chromium: the tests of the evaluation's report will be skipped."
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(STAMP): pyproject.toml
	@echo "Installing into $(VENV); this takes a few minutes."
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(OPENPI_CLIENT)
	$(BIN)/python -m sims.rendering || { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y $(GL_PACKAGES) && $(BIN)/python -m sims.rendering; }
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
