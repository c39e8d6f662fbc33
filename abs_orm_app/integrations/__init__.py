"""The pools as others see them: metrics, health checks, a page. Each needs an extra of its own."""
