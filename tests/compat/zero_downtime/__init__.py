"""An engine that joins two, as docs/embedding.md shows it."""
