"""For pytest.ini: `addopts = -p abs_orm_app.integrations.pytest_without_pool`.

A `-p` plugin is imported before pytest-django reads the settings; a conftest.py is not, if
DJANGO_SETTINGS_MODULE is set in pytest.ini. A DB_POOL_MODE in the environment takes precedence.
"""

import os

os.environ.setdefault("DB_POOL_MODE", "null")
