# Everything here sets itself up: a machine with make and Python >= 3.11 is enough, and after the first call no network
# is needed. Options: PYTHON=/path/to/python chooses the interpreter, ARGS="..." is passed on to pytest or the demo, JOBS
# is the number of processes that share the tests, LOCKED=1 lets pip compare hashes of all that it installs but torch.

PYTHONS := python3.11 python3.12 python3.13 python3 python3.14 python
VENV := .venv
EXTRAS := dev,plots,auto
JOBS := 2
FAMILIES := mace nequip sevennet escnn pyg
LAYERS := $(patsubst %,.venv-%,docs e3nn044 oldest integrations $(FAMILIES))
IN_VENV := $(VENV)/bin/python
# The processes that share the tests would otherwise each take a thread per core.
ONE_THREAD := OMP_NUM_THREADS=1
# Each process takes its share of the tests in their order, so that most fixtures of a module are made once.
SHARED := -n $(JOBS) --dist worksteal
PYTEST := $(ONE_THREAD) $(IN_VENV) -m pytest $(SHARED)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-short gallery pages docs test test-fast test-e3nn044 test-families test-mace test-nequip test-sevennet test-escnn test-pyg test-integrations test-portable test-e3nn-suite false-sites fuzz faults hostile mutants lint format types setup lock clean clean-all

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_NO_INPUT := 1
# Only what is imported is compiled, when it is: most of torch never is, and there are several environments.
export PIP_NO_COMPILE := 1
# Some containers set it; then every process of the tests would compile this project and rewrite the tests again.
export PYTHONDONTWRITEBYTECODE :=

# The stamp of an environment holds the folder it was made in. A copied or moved checkout is set up again, because its
# environment would go on importing from the old folder.
MOVED := $(shell for venv in $(VENV) $(LAYERS); do \
	[ ! -f $$venv/.stamp ] || [ "$$(cat $$venv/.stamp)" = "$$(pwd -P)" ] || rm -f $$venv/.stamp; done)

# $(call layer,FOLDER). An environment on top of .venv: what it lacks, pip and torch among it, is imported from there.
define layer
@site=$$($(IN_VENV) -c 'import os, sys, sysconfig; print(os.path.relpath(sysconfig.get_path("purelib"), sys.prefix))'); \
if [ ! -f $(1)/$$site/below.pth ]; then \
	echo "setting up $(1) on top of $(VENV)"; \
	$(IN_VENV) -m venv --clear --without-pip $(1); \
	echo "../../../../$(VENV)/$$site" > $(1)/$$site/below.pth; \
fi
endef

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*  ## ' Makefile | sed -E 's/^([a-z0-9-]+):.*  ## /\1|/' | \
		while IFS='|' read -r name what; do printf '  make %-17s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.stamp  ## relax, fine-tune and strip a small network, and show what it gains
	$(IN_VENV) examples/demo.py $(ARGS)

demo-short: $(VENV)/.stamp  ## the same with less training, to see that everything works
	$(IN_VENV) examples/demo.py --short $(ARGS)

gallery: $(VENV)/.stamp  ## take the pictures of docs/gallery.md anew
	$(IN_VENV) docs/gallery.py

test: $(VENV)/.stamp  ## run all tests
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.stamp  ## run the tests that take seconds
	$(PYTEST) -m "not slow" $(ARGS)

test-e3nn044: .venv-e3nn044/.stamp  ## run the quick tests that touch e3nn with the oldest supported e3nn
	$(ONE_THREAD) .venv-e3nn044/bin/python -m pytest $(SHARED) -p no:cacheprovider -m "e3nn and not slow" $(ARGS)

test-families: $(FAMILIES:%=test-%)  ## run the tests of the model families of other libraries, each in its own environment

$(FAMILIES:%=test-%): test-%: .venv-%/.stamp
	$(ONE_THREAD) .venv-$*/bin/python -m pytest -p no:cacheprovider tests/families/test_$*.py $(wildcard tests/families/test_$*_*.py) \
		tests/test_tutorials.py::test_what_other_pages_show_is_printed $(ARGS)

test-integrations: .venv-integrations/.stamp  ## run the tests of Lightning, transformers and accelerate, in an environment with them
	$(ONE_THREAD) .venv-integrations/bin/python -m pytest -p no:cacheprovider tests/integrations $(ARGS)

false-sites: $(VENV)/.stamp  ## inspect models that are refused under 20 seeds each (minutes)
	@$(ONE_THREAD) $(IN_VENV) -m tests.campaigns.false_sites $(ARGS)

fuzz: $(VENV)/.stamp  ## read hostile files, addresses and options
	@$(ONE_THREAD) $(IN_VENV) -m tests.campaigns.fuzz $(ARGS)

faults: $(VENV)/.stamp  ## let every call by which a command writes fail once
	@$(ONE_THREAD) $(IN_VENV) -m tests.campaigns.faults --jobs $(JOBS) $(ARGS)

hostile: $(VENV)/.stamp  ## read the files in DIR, a collection of hostile ones, under every name that surgeon reads
	@$(IN_VENV) -m tests.campaigns.hostile "$(DIR)" $(ARGS)

mutants: $(VENV)/.stamp  ## put faults into the code one by one, and see that a test notices each; goes on where it was
	@$(IN_VENV) -m tests.mutants.run --jobs $(JOBS) $(ARGS)

test-e3nn-suite: $(VENV)/.stamp  ## run e3nn's own tests, E3NN=folder of its sources, with every layer relaxed at 0 and stripped
	@$(ONE_THREAD) $(IN_VENV) -m tests.campaigns.e3nn_suite "$(E3NN)" $(ARGS)

# The slice is for continuous integration, and does without the other versions.
test-portable: $(VENV)/.stamp $(if $(filter --slice,$(ARGS)),,.venv-oldest/.stamp)  ## run the tests as other processors, thread counts, seeds and versions would (an hour)
	$(ONE_THREAD) $(IN_VENV) -m tests.portable $(ARGS) $(if $(filter --slice,$(ARGS)),,$(SHARED))

pages: $(VENV)/.stamp $(FAMILIES:%=.venv-%/.stamp)  ## run what pages show outputs of, and write them anew (half an hour)
	@$(ONE_THREAD) $(IN_VENV) -m tests.tutorials --fill

docs: .venv-docs/.stamp  ## build the documentation site in build/docs; a dead link or reference is an error
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	@echo "build/docs/index.html"

lint: $(VENV)/.stamp  ## check style and formatting
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .

format: $(VENV)/.stamp  ## format, and fix what can be fixed mechanically
	$(IN_VENV) -m ruff check --fix .
	$(IN_VENV) -m ruff format .

types: $(VENV)/.stamp  ## check the types of the three packages
	$(IN_VENV) -m mypy

setup: $(VENV)/.stamp  ## only set up the environment, in .venv

lock: $(VENV)/.stamp  ## write requirements-locked.txt anew, with the hashes of what pip chooses here
	@mkdir -p build
	@$(IN_VENV) -m pip install --quiet --dry-run --ignore-installed --no-build-isolation --report build/lock.json \
		-c constraints.txt torch hatchling editables ".[$(EXTRAS)]"
	@$(IN_VENV) .ci/lock build/lock.json > requirements-locked.txt

# Torch comes first and by its pinned version, so that nothing else pulls another build of it; the build backend is
# installed beside it, so that a later call builds without a network.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@if ! $(IN_VENV) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
			"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
			echo "setting up $(VENV) with $$("$$python" --version)"; \
			exec "$$python" -m venv --clear $(VENV); \
		done; \
		echo "expected Python 3.11 or newer with its venv module, found none as$(if $(PYTHON), PYTHON=$(PYTHON),: $(PYTHONS));" \
			"install one, or name it with make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi
	@echo "installing torch, then everything else, into $(VENV) (minutes the first time, seconds later)"
	@[ -z "$(LOCKED)" ] || $(IN_VENV) -m pip install --quiet --no-deps --require-hashes -r requirements-locked.txt
	@$(IN_VENV) -m pip install --quiet -c constraints.txt torch hatchling editables
	@$(IN_VENV) -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@pwd -P > $(VENV)/.stamp

clean:  ## remove caches and build products
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo-output
	find . -path './.venv*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

clean-all: clean  ## remove the environments too
	rm -rf $(VENV) $(LAYERS)

.venv-%/.stamp: $(VENV)/.stamp requirements-%.txt
	$(call layer,.venv-$*)
	@.venv-$*/bin/python -m pip install --quiet --no-deps -r requirements-$*.txt
	@.venv-$*/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@pwd -P > .venv-$*/.stamp

.PRECIOUS: .venv-%/.stamp
