"""`make compat`: packages that stand beside a database, each with the pool, on a real server."""
