"""`gaggle extensions`: MCP extensions, from the terminal."""
