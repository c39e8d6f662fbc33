"""Writes PgBouncer's files from the settings."""
