"""Shows the pools to other systems: metrics, health checks, a page in the admin."""
