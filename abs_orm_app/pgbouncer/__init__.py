"""The same settings as PgBouncer's files."""
