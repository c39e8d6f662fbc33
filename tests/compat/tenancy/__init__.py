"""The models that django-tenants wants a project to have."""
