"""Reads the environment into one entry of DATABASES."""
