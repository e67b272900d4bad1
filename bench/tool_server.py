"""An MCP server of one tool that does nothing, so that a call costs what the way to it costs."""

from mcp.server import MCPServer

server = MCPServer("bench")


@server.tool()
def echo(text: str) -> str:
    """Give a text back."""
    return text


if __name__ == "__main__":
    server.run()
