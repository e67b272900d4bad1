"""The extension service: the registry of MCP extensions, and the connections to them."""
