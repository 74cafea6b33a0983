# make demo      the whole method, on a machine with two cores and no GPU; installs itself on first use
# make test      the tests; the same
# make install   .venv with everything, in under 4 minutes. PIP_FLAGS is passed to pip, to choose another build of torch
PYTHON    ?= python3
VENV      ?= .venv
PIP_FLAGS ?=
SIZE      ?= small
DEMO      ?= demo
EVIDENCE  ?= evidence

BIN   := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: help install demo test test-faults test-sam2 lint sprites sprites-quality evidence evidence-quick bench bench-gpu clean
.DEFAULT_GOAL := help

help:                ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: $(READY)    ## make .venv and install everything into it (skipped when fresh)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "videomage needs Python 3.10 or newer: make install PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -e '.[dev]'
	@touch $@

demo: $(READY)       ## segment, invert, learn, fuse, sample, eval on files of its own; ends by naming the video
	$(BIN)/videomage demo $(DEMO)

test: $(READY)       ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test-faults: $(READY)  ## crashes at every operation, kills, full disks, damaged and hostile files; ends with a count (under 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m faults

test-sam2:           ## SAM2 through the package of its authors, in an environment of its own (.venv-sam2)
	test -x .venv-sam2/bin/python || $(PYTHON) -m venv .venv-sam2
	.venv-sam2/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -e '.[dev,sam2]'
	SAM2_BUILD_CUDA=0 .venv-sam2/bin/python -m pip install --disable-pip-version-check --quiet --no-build-isolation \
	  --no-deps sam2==1.1.0
	OMP_NUM_THREADS=1 .venv-sam2/bin/python -m pytest -q tests/test_sam2_package.py \
	  tests/test_grounded_sam2.py tests/test_segment.py

lint: $(READY)       ## ruff
	$(BIN)/ruff check .

sprites: $(READY)    ## train the built-in base (SIZE=small: hours of two cores; SIZE=full: minutes of a GPU)
	$(BIN)/python -m stages.sprites.train --size $(SIZE)
	$(BIN)/python -m stages.sprites.train_judges --size $(SIZE)

sprites-quality: $(READY)   ## judge the built-in base on held-out captions and write its model card
	$(BIN)/python -m stages.sprites.quality

evidence: $(READY)   ## the experiment: the method, its ablations and controls; into docs/evidence.md (hours; goes on where it stopped)
	$(BIN)/python -m stages.evidence $(EVIDENCE)
	$(BIN)/videomage sweep evidence.yaml -p $(EVIDENCE)
	$(BIN)/python -m stages.evidence.alone $(EVIDENCE)
	$(BIN)/python -m stages.evidence.report $(EVIDENCE) evidence.yaml docs

evidence-quick: $(READY)    ## a small form of it, in minutes; into $(EVIDENCE)/quick
	$(BIN)/python -m stages.evidence $(EVIDENCE)
	$(BIN)/videomage sweep evidence-quick.yaml -p $(EVIDENCE)
	$(BIN)/python -m stages.evidence.report $(EVIDENCE) evidence-quick.yaml $(EVIDENCE)/quick

bench: $(READY)      ## what steps and videos cost beside their floors, into docs/performance.md (under 20 minutes)
	$(BIN)/python -m bench.ratios docs/performance.md

bench-gpu: $(READY)  ## seconds and memory at ZeroScope's size on a CUDA device, beside the estimates; Grounded-SAM2 there
	$(BIN)/videomage doctor
	$(BIN)/python -m pytest -q tests/test_grounded_sam2.py -k cuda
	$(BIN)/python -m bench.gpu

clean:               ## remove what was built (not .venv, .venv-sam2, runs/)
	rm -rf build dist $(DEMO) .pytest_cache .ruff_cache *.egg-info
	find stages videomage_cli tests -name __pycache__ -type d -prune -exec rm -rf {} +
