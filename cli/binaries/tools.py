"""Tools that the tests and the bench run against the mesh."""

from pathlib import Path

from cli.binaries.build import Program, Progress, ensure_built

GRPCURL = Program("grpcurl", "grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl", "1.9.3")
GHZ = Program("ghz", "ghz", "github.com/bojand/ghz/cmd/ghz", "0.121.0")
TOOLS = {program.name: program for program in (GRPCURL, GHZ)}


def tool(name: str, progress: Progress) -> Path:
    """The path of a tool of TOOLS, built if the cache lacks it."""
    program = TOOLS[name]
    ensure_built([program], progress)
    return program.path
