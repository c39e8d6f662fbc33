"""The sample project for a WSGI server: `gunicorn abs_project.wsgi`."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "abs_project.settings")
application = get_wsgi_application()
