"""Findings and facts as text and JSON, and the live view of --watch."""
