"""The live page of the pools in the Django admin."""
