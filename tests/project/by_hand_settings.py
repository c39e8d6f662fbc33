"""A project whose entry of DATABASES is written by hand, with this app's engine and no pool."""

INSTALLED_APPS = ["abs_orm_app"]
DATABASES = {
    "default": {"ENGINE": "abs_orm_app.backends.postgresql", "NAME": "shop", "CONN_MAX_AGE": 600}
}
