"""Answers messages by a model and its tools, in a conversation."""
