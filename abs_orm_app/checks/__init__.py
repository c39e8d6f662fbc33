"""Rules that turn facts into findings, collected, and as Django system checks."""
