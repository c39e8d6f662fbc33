"""One module a package, each with a `CASE`."""
