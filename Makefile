# Each target sets up $(VENV) first, and again only when a requirement has changed.
# Others than the defaults: make test PYTHON=python3.13 VENV=.venv313 DJANGO='django~=6.1.0'
# Only some tests: make test TESTS='tests/pool/test_checkout.py -k deadline'

PYTHON = python3
VENV = .venv
DJANGO = django
BIN = $(VENV)/bin
READY = $(VENV)/.ready
BENCH = --output docs
WAGTAIL = .venv-wagtail
TESTS =
JOBS = 3

.PHONY: install check_pool test wagtail bench lint stop clean

check_pool: $(READY)
	$(BIN)/python manage.py check_pool

install: $(READY)

# Most tests wait for servers and deadlines more than they compute.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(TESTS)

# A site of Wagtail, in an environment of its own, through a restart of its database.
wagtail: $(READY) $(WAGTAIL)/.ready
	$(BIN)/python -m pytest tests/project/test_wagtail.py -rP

# About twelve minutes on an idle machine; less, and into nothing: make bench BENCH=--quick
bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks $(BENCH)
	$(BIN)/python -m benchmarks.metrics_cost
	$(BIN)/python -m benchmarks.commands

# The type checker reads the settings; a database named here is not started for that.
lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	DATABASE_URL=postgresql:///unused $(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest --quiet tests/project/test_docs.py

# The embedded PostgreSQL goes on running between commands.
stop:
	test ! -d .pgdata || $(BIN)/python -m abs_orm_app.embedded stop .pgdata

clean:
	-$(MAKE) stop
	rm -rf .pgdata $(VENV) $(WAGTAIL) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml requirements.txt | $(BIN)/pip
	$(BIN)/python -m pip --disable-pip-version-check install --quiet \
	    --requirement requirements.txt '$(DJANGO)'
	@touch $@

$(VENV)/.ready-bench: $(READY)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --editable '.[bench]' '$(DJANGO)'
	@touch $@

$(WAGTAIL)/.ready: pyproject.toml | $(BIN)/pip
	$(PYTHON) -m venv --without-pip --clear $(WAGTAIL)
	$(BIN)/python -m pip --disable-pip-version-check --python $(WAGTAIL)/bin/python install --quiet \
	    --editable . 'psycopg[binary]' 'wagtail~=8.0' gunicorn uvicorn
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || { \
	    echo "$(PYTHON) lacks the module venv; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
