"""Fixtures: the whole mesh, its sidecars with identities."""

from collections.abc import Iterator

import pytest

from tests.mesh_fixture import Mesh, start_mesh


class SecureMesh(Mesh):
    """A mesh of `gaggle up --mtls`."""

    def tokens(self, service: str) -> dict[str, str]:
        """The two by which a service and its sidecar know each other: `app` and `dapr`."""
        return {kind: (self.data.keys / f"{service}.{kind}-api-token").read_text() for kind in ("app", "dapr")}

    def by_sidecar(self, service: str, *, of: str = "") -> tuple[tuple[str, str], ...]:
        """Metadata of a call at a service's sidecar, as that service makes it; `of` is whom it is for."""
        target = (("dapr-app-id", self.service(of).app_id),) if of else ()
        return (("dapr-api-token", self.tokens(service)["dapr"]), *target)


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    """All services, with mTLS, access by policy, and TLS to the database."""
    started = start_mesh(tmp_path_factory.mktemp("secure"), mtls=True)
    yield SecureMesh(started.file)
    started.stop()
