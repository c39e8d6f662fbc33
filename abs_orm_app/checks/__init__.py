"""Rules that turn facts into findings, and Django's system checks that run them."""
