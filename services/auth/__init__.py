"""Who is calling: sessions, tokens and the keys that prove them."""
