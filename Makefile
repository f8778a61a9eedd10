# make demo   sets up, deploys the digits Swin in fp32 and fp16, runs it on a picture
# make test   sets up, runs everything that CI runs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
PICTURE := examples/digits/pictures/7/3750.png

.PHONY: demo test lint types rooms unit browser clean
.DELETE_ON_ERROR:

$(VENV)/.ready-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[make,rtx]'
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready-demo
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[make,rtx,sign,dev]'
	@touch $@

demo: $(VENV)/.ready-demo
	@for precision in fp32 fp16; do \
	  $(BIN)/trtship deploy examples/digits/model.py:digits_swin --checkpoint examples/digits/digits.safetensors \
	    --precision $$precision --batch 1:8:32 --eval examples/digits/pictures --force \
	    -o $(DEMO)/digits-$$precision.trtship || exit $$?; \
	done
	@$(BIN)/trtship run $(DEMO)/digits-fp16.trtship $(PICTURE)
	@echo
	@echo "the bundles are $(DEMO)/digits-fp32.trtship and $(DEMO)/digits-fp16.trtship;"
	@echo "look into one:  $(BIN)/trtship inspect $(DEMO)/digits-fp16.trtship"

test: lint types rooms unit

lint: $(VENV)/.ready-test
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks

types: $(VENV)/.ready-test
	$(BIN)/mypy

rooms: $(VENV)/.ready-test
	$(BIN)/lint-imports

unit: $(VENV)/.ready-test browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

# what the tests of the report need beside Python: a browser, and Java for the checker of HTML
browser: $(VENV)/.ready-test
	@if command -v java >/dev/null && $(BIN)/python tests/report/browsers.py >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium default-jre-headless fonts-dejavu-core; \
	fi; \
	$(BIN)/python tests/report/browsers.py || $(BIN)/playwright install chromium; \
	command -v java && $(BIN)/python tests/report/browsers.py || \
	  { echo "install Chromium and a Java runtime: the tests of the report need them"; exit 1; }

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache build *.egg-info src/*.egg-info
