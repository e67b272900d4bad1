"""How a service's process begins, or says why it does not."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from services.runtime.dapr import metadata_pb2
from services.runtime.service import StartError, Wiring, check_components
from services.runtime.settings import ServiceSettings

_ENVIRONMENT = {"APP_ID": "auth", "APP_PORT": "0", "DAPR_GRPC_PORT": "1", "APP_API_TOKEN": "secret-token"}
_SETTINGS = ServiceSettings.model_validate({"app_id": "auth", "port": 0, "sidecar_port": 1, "APP_API_TOKEN": "x"})
_POSTGRES = ("statestore", "state.postgresql", ["ETAG", "TRANSACTIONAL"])
_OTHERS: list[tuple[str, str, list[str]]] = [
    ("pubsub", "pubsub.redis", []),
    ("secretstore", "secretstores.local.file", []),
]


def _metadata(*components: tuple[str, str, list[str]]) -> metadata_pb2.GetMetadataResponse:
    response = metadata_pb2.GetMetadataResponse()
    for name, kind, capabilities in components:
        response.registered_components.add(name=name, type=kind, capabilities=capabilities)
    return response


def test_good_components() -> None:
    """A sidecar with all components, and a store that rolls back, is taken."""
    check_components(_metadata(_POSTGRES, *_OTHERS), _SETTINGS, Wiring(servicers=[]))


@pytest.mark.parametrize(
    ("components", "words"),
    [
        pytest.param([*_OTHERS], ["statestore"], id="no store"),
        pytest.param([_POSTGRES, _OTHERS[0]], ["secretstore"], id="no secrets"),
        pytest.param([_POSTGRES, _OTHERS[1]], ["pubsub"], id="no broker"),
        pytest.param(
            [("statestore", "state.redis", ["ETAG", "TRANSACTIONAL"]), *_OTHERS],
            ["state.redis", "roll back"],
            id="Redis, whatever it says of itself",
        ),
        pytest.param(
            [("statestore", "state.memcached", []), *_OTHERS], ["state.memcached", "roll back"], id="no transactions"
        ),
    ],
)
def test_refused_components(components: list[tuple[str, str, list[str]]], words: list[str]) -> None:
    """A component that is missing or can't do what is needed is named, in one line."""
    with pytest.raises(StartError) as caught:
        check_components(_metadata(*components), _SETTINGS, Wiring(servicers=[]))
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words)


def _run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "PYTHONPATH"}}
    return subprocess.run(
        [sys.executable, "-m", "services.auth"],
        env={**base, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def _taken_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        pytest.param({"APP_ID": None}, ["APP_ID"], id="no app id"),
        pytest.param({"APP_API_TOKEN": None}, ["APP_API_TOKEN"], id="no app token"),
        pytest.param({"APP_API_TOKEN": ""}, ["APP_API_TOKEN"], id="an empty app token, which anyone could send"),
        pytest.param({"APP_PORT": "high"}, ["APP_PORT"], id="a port that is none"),
        pytest.param({"APP_PORT": "70000"}, ["APP_PORT"], id="a port too high"),
        pytest.param({"GAGGLE_LOG_LEVEL": "loud"}, ["LOG_LEVEL"], id="a level that is none"),
        pytest.param({"APP_ID": None, "DAPR_GRPC_PORT": None}, ["APP_ID", "DAPR_GRPC_PORT"], id="two at once"),
    ],
)
def test_wrong_settings(changes: dict[str, str | None], names: list[str]) -> None:
    """A setting that is missing or wrong ends the process with 2 and one line that names it, and no secret."""
    environment = {name: value for name, value in {**_ENVIRONMENT, **changes}.items() if value is not None}
    ended = _run(environment)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("gaggle auth: settings: ")
    for name in names:
        assert name.lower() in ended.stderr.lower().replace("gaggle_port", "app_port").replace(
            "gaggle_sidecar_port", "dapr_grpc_port"
        )
    assert "secret-token" not in ended.stderr


@pytest.mark.parametrize("setting", ["APP_PORT", "GAGGLE_METRICS_PORT"])
def test_a_taken_port(setting: str) -> None:
    """A port that someone else has ends the process with one line that names it."""
    with _taken_port() as port:
        ended = _run({**_ENVIRONMENT, setting: str(port)})
        assert ended.returncode == 1, ended.stderr
        told = [line for line in ended.stderr.splitlines() if line.startswith("gaggle auth: ")]
        assert len(told) == 1
        assert str(port) in told[0]
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        pytest.param({"GAGGLE_TLS_CERTIFICATE_FILE": "/c.pem"}, 2, "tls_key_file", id="no key"),
        pytest.param(
            {"GAGGLE_TLS_CERTIFICATE_FILE": "/c.pem", "GAGGLE_TLS_KEY_FILE": "/none.pem"}, 1, "/none.pem", id="no file"
        ),
    ],
)
def test_half_a_certificate(changes: dict[str, str], code: int, names: str) -> None:
    """A certificate without its key, or a file that is not there, ends the process with one line that names it."""
    ended = _run({**_ENVIRONMENT, **changes})
    assert ended.returncode == code, ended.stderr
    (told,) = [line for line in ended.stderr.splitlines() if line.startswith("gaggle auth: ")]
    assert names in told


def test_a_service_without_state_needs_no_store() -> None:
    """A service that keeps no state and has no events starts without those components, which are not for it."""
    check_components(_metadata(_OTHERS[1]), _SETTINGS, Wiring(servicers=[], keeps_state=False, has_events=False))
    with pytest.raises(StartError, match="statestore"):
        check_components(_metadata(_OTHERS[1]), _SETTINGS, Wiring(servicers=[], has_events=False))
