"""What other systems see of the pools: metrics, health checks, a page in the admin."""
