"""`gaggle reminders`."""
