"""Tasks as tools of the Model Context Protocol: `gaggle mcp`."""
