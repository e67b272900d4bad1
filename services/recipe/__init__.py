"""Keeps recipes and runs them."""
