"""The event log, its counts, and the SQL read model made from it."""
