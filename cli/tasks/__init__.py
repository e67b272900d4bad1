"""`gaggle tasks`."""
