"""`gaggle notifications`."""
