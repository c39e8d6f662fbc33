"""An engine that joins two, as docs/compatibility.md shows it."""
