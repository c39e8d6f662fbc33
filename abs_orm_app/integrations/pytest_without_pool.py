"""For pytest.ini: `addopts = -p abs_orm_app.integrations.pytest_without_pool`.

A plugin that is named by `-p` is imported before pytest-django reads the settings; a conftest.py
is not, where DJANGO_SETTINGS_MODULE stands in pytest.ini. A DB_POOL_MODE of the environment wins.
"""

import os

os.environ.setdefault("DB_POOL_MODE", "null")
