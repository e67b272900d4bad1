"""goose's own sessions: its JSON, its SQLite file, and how both read in the mesh's contracts."""
