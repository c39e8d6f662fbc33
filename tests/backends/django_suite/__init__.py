"""A few tests for Django's own runner, which `test_engine.py` runs in pool mode."""
