"""`gaggle audit`: the log, and the read model made again."""
