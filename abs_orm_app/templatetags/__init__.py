"""Filters for the templates of the live page."""
