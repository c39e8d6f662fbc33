"""Intervals of the pool that others build on: PgBouncer's file has them too. All in seconds."""

RETRY_INTERVAL = 0.2  # between attempts to connect while a request waits
PING_AFTER = 0.5  # idle time after which a checkout pings first; HikariCP's aliveBypassWindow
ROUND_TRIP = 20e-6  # seconds; no server can answer in less
