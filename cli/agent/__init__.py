"""Talking to agents from the command line."""
