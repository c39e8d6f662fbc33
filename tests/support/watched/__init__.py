"""A project with all that watches the pool, for real web servers in tests."""
