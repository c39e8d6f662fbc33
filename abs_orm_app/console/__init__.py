"""Findings and facts as text and JSON."""
