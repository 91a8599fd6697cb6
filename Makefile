# make train: set up .venv and train the embedded shapes policy.   make test: set up .venv and run the tests.
# EXTRAS are the optional dependencies of pyproject.toml to install, e.g. make test EXTRAS=dev,yolo
# PIP_ARGS reaches pip, e.g. make train PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3.11
PIP_ARGS ?=
STACK ?= cpu
EXTRAS ?= dev
BIN := .venv/bin
STAMP := .venv/.installed-$(STACK)-$(EXTRAS)

.PHONY: train test lint examples setup clean
train: setup
	$(BIN)/python -m t2ir1_ray.train $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

examples: setup # deploy/examples/, after a change of a recipe, the memory table or a template
	$(BIN)/python -m deploy.write_examples

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[$(STACK),$(EXTRAS)]'
	$(BIN)/python -m t2ir1_ray.cpu_stack
	touch $@

clean:
	rm -rf .venv runs
