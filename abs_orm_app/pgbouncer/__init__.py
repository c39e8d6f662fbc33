"""Writes the settings as PgBouncer's files."""
