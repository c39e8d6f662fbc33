"""Django's own tests, on this app's engine."""
