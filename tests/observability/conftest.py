"""Fixtures: one mesh with all services whose traces go to a real Zipkin, and what is to be seen of it."""

import shlex
from collections.abc import Callable, Iterator

import pytest

from cli.binaries.build import Progress
from cli.binaries.prometheus import prometheus
from cli.binaries.zipkin import zipkin
from cli.mesh.ports import find_free_base
from cli.observing.programs import running_prometheus, running_zipkin
from tests.mcp_servers import servers
from tests.mesh_fixture import Mesh, start_mesh
from tests.observability.chatting import ASSISTANT
from tests.observability.collector import Collector, collecting


@pytest.fixture(scope="session")
def progress() -> Progress:
    """Nobody watches."""
    return lambda _name, _size: None


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a port that nobody has, another one each time."""
    given = iter(range(1_000))

    def find() -> int:
        return find_free_base([]).broker + 20 + next(given)

    return find


@pytest.fixture(scope="session")
def traces(progress: Progress, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Zipkin's address."""
    with running_zipkin(zipkin(progress), tmp_path_factory.mktemp("zipkin"), free_port()) as address:
        yield address


@pytest.fixture(scope="session")
def collected() -> Iterator[tuple[Collector, str]]:
    """An OTLP collector and its address."""
    with collecting() as found:
        yield found


@pytest.fixture(scope="session")
def observed(traces: str, collected: tuple[Collector, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """All services; calls are traced whose caller says so, and hardly any other."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GAGGLE_ZIPKIN_ENDPOINT", f"{traces}/api/v2/spans")
        environment.setenv("GAGGLE_OTLP_ENDPOINT", collected[1])
        environment.setenv("GAGGLE_TRACE_SAMPLE_RATIO", "0.000001")
        environment.setenv("GAGGLE_STDIO_COMMANDS", f"{servers.COMMANDS};{shlex.join(ASSISTANT)}")
        mesh = start_mesh(tmp_path_factory.mktemp("observed"))
    yield mesh
    mesh.stop()


@pytest.fixture(scope="session")
def scraped(
    observed: Mesh, progress: Progress, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a Prometheus that scrapes that mesh."""
    folder = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(prometheus(progress), folder, observed.data.targets, free_port()) as address:
        yield address
