"""The sample project for an ASGI server: `uvicorn abs_project.asgi:application`."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "abs_project.settings")
application = get_asgi_application()
