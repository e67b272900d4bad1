"""The next occurrence of recurring tasks."""
