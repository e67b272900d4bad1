"""Fixtures: the whole mesh, its sidecars with identities, and every secret of it known by a mark."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.mesh.data import DataDirectory, write_private
from tests.mesh_fixture import Mesh, start_mesh
from tests.notification.receivers import USERNAME, MailServer, make_certificate
from tests.secure.listening import Collector, EchoingModel


class SecureMesh(Mesh):
    """A mesh of `gaggle up --mtls`."""

    marks: dict[str, str]
    """Secrets that were there before it started: name to value."""

    collector: Collector
    models: dict[str, EchoingModel]

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
    folder = tmp_path_factory.mktemp("secure")
    mail = MailServer(*make_certificate(folder))
    mail.start()
    collector, models = Collector(), {"refusing": EchoingModel(401), "rejecting": EchoingModel(400)}
    marks = {
        name: f"marked-{name.lower()}-{secrets.token_hex(8)}"
        for name in ("OPENAI_API_KEY", "MODEL_KEY", "SMTP_PASSWORD", "extension-test-secret", "redis-password")
    }
    data = DataDirectory.at(folder / "data")
    data.create()
    planted = {
        **marks,
        "SMTP_HOST": "localhost",
        "SMTP_PORT": str(mail.port),
        "SMTP_USERNAME": USERNAME,
        "SMTP_FROM_EMAIL": "gaggle@example.org",
    }
    write_private(data.secrets_file, json.dumps(planted))
    endpoints = [
        {"name": name, "base_url": model.url, "secret": secret, "models": {"one": {"context_tokens": 8000}}}
        for (name, model), secret in zip(models.items(), ("OPENAI_API_KEY", "MODEL_KEY"), strict=True)
    ]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "GAGGLE_MODEL_ENDPOINTS": json.dumps(endpoints),
            "GAGGLE_MODEL_BACKOFF_SECONDS": "0.05",
            "GAGGLE_SMTP_CA_FILE": str(mail.certificate),
            "GAGGLE_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "GAGGLE_TRACE_SAMPLE_RATIO": "1",
            "GAGGLE_LOG_LEVEL": "debug",
        }.items():
            environment.setenv(name, value)
        started = SecureMesh(start_mesh(data.path, mtls=True).file)
    started.marks, started.collector, started.models = marks, collector, models
    yield started
    started.stop()
    mail.stop()
    collector.stop()
    for model in models.values():
        model.stop()


def secret_files(data: DataDirectory) -> list[Path]:
    """Files and folders of a data directory in which secrets are meant to lie, for their owner alone."""
    return [
        data.secrets_file,
        data.keys,
        data.identities,
        data.path / "tls",
        data.redis / "redis.conf",
        data.kafka / "server.properties",
        data.rabbitmq / "rabbitmq.conf",
    ]
