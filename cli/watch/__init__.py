"""`gaggle watch`: what happens to a user's things, as it happens."""
