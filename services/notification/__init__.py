"""Tells users: an inbox, e-mail, webhooks."""
