"""Conversations, their messages and branches."""
