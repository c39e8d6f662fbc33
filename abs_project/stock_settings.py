"""The same settings on Django's own engine and pool, for a comparison.

python manage.py check_pool --drill --settings abs_project.stock_settings
"""

from abs_project.settings import *  # noqa: F403
from abs_project.settings import DATABASES

DATABASES["default"]["ENGINE"] = "django.db.backends.postgresql"
