"""Whole projects of others, with their own tests, on Django's engine and on ours."""
