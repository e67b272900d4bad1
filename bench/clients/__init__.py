"""One module a system that is measured in process; each has `connect(spec)`, an async context manager of a Client."""
