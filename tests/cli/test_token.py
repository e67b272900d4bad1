"""Tokens and keys of the local mesh."""

import json
import re
import stat
import time
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import KeySet
from typer.testing import CliRunner

from cli.errors import CommandError, NotRunning
from cli.main import app
from cli.mesh.data import DataDirectory
from cli.mesh.keys import ensure_keys, sign_token
from cli.mesh.secrets import Secret, read_secrets, write_secrets


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """A data directory with keys, as `gaggle up` makes it."""
    directory = DataDirectory.at(tmp_path / "data")
    directory.create()
    ensure_keys(directory, ["auth", "conversation"])
    return directory


def _key_set(data: DataDirectory) -> KeySet:
    return KeySet.import_key_set(json.loads((data.keys / "jwks.json").read_text()))


def test_a_token_says_who_and_for_how_long_and_verifies_by_the_jwks(data: DataDirectory) -> None:
    """Whoever has the JWKS can tell the user, the roles and the expiry, and that our issuer said so."""
    token = jwt.decode(sign_token(data, "ada", roles=["admin"], ttl_seconds=60), _key_set(data), algorithms=["EdDSA"])

    assert token.header == {"typ": "JWT", "alg": "EdDSA", "kid": "issuer"}
    assert {name: token.claims[name] for name in ("iss", "aud", "sub", "roles")} == {
        "iss": "gaggle",
        "aud": "gaggle",
        "sub": "ada",
        "roles": ["admin"],
    }
    assert token.claims["exp"] - token.claims["iat"] == 60
    assert abs(token.claims["iat"] - time.time()) < 5
    assert token.claims["jti"]


def test_a_token_of_another_mesh_does_not_verify(data: DataDirectory, tmp_path: Path) -> None:
    """Two meshes have nothing to say in each other."""
    other = DataDirectory.at(tmp_path / "other")
    other.create()
    ensure_keys(other, [])

    with pytest.raises(BadSignatureError):
        jwt.decode(sign_token(other, "ada"), _key_set(data), algorithms=["EdDSA"])


def test_private_keys_are_their_owners_alone_and_the_jwks_has_none(data: DataDirectory) -> None:
    """No file with a private key can be read by another account, and what is published holds no private half."""
    assert {stat.S_IMODE(path.stat().st_mode) for path in data.keys.iterdir()} == {0o600}
    published = json.loads((data.keys / "jwks.json").read_text())["keys"]
    assert sorted(key["kid"] for key in published) == ["auth", "conversation", "issuer"]
    assert not any("d" in key for key in published)


def test_keys_stay_and_new_services_get_theirs(data: DataDirectory) -> None:
    """A token outlives a restart of the mesh, also when a release has brought a new service."""
    token = sign_token(data, "ada")

    ensure_keys(data, ["auth", "conversation", "task"])

    assert jwt.decode(token, _key_set(data), algorithms=["EdDSA"]).claims["sub"] == "ada"
    assert (data.keys / "task.jwk").exists()


def test_secrets_of_a_persons_own_and_the_password_are_kept(data: DataDirectory) -> None:
    """What somebody adds to secrets.json survives the next start, beside what the broker's secrets are by then."""
    keys = ensure_keys(data, ["auth"])
    kafka = {"KAFKA_BROKERS": "127.0.0.1:1", "KAFKA_USERNAME": "u"}
    was: dict[str, Secret] = {"redis-host": "127.0.0.1:1", "kafka-secrets": kafka}
    first = write_secrets(data, database="a", broker=was, keys=keys)
    data.secrets_file.write_text(json.dumps(first | {"OPENAI_API_KEY": "mine"}))

    moved: dict[str, Secret] = {"redis-host": "127.0.0.1:2", "kafka-secrets": {"KAFKA_BROKERS": "127.0.0.1:2"}}
    second = write_secrets(data, database="b", broker=moved, keys=keys)

    assert second == read_secrets(data)
    assert second["OPENAI_API_KEY"] == "mine"
    assert (second["database"], second["redis-host"]) == ("b", "127.0.0.1:2")
    assert second["kafka-secrets"] == kafka | {"KAFKA_BROKERS": "127.0.0.1:2"}
    assert second["backend-secrets"] == {"DATABASE_URL": "b"}
    assert stat.S_IMODE(data.secrets_file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("user", "ttl_seconds"),
    [
        pytest.param("", 60, id="no user"),
        pytest.param("ü" * 65, 60, id="130 bytes"),
        pytest.param("ada", 0, id="no time"),
    ],
)
def test_tokens_out_of_bounds_are_refused(data: DataDirectory, user: str, ttl_seconds: int) -> None:
    """No token is made that a service would have to refuse."""
    with pytest.raises(CommandError):
        sign_token(data, user, ttl_seconds=ttl_seconds)


def test_without_keys_the_command_says_what_makes_them(tmp_path: Path) -> None:
    """A person who asks for a token too early learns the next step."""
    with pytest.raises(NotRunning, match="gaggle up"):
        sign_token(DataDirectory.at(tmp_path), "ada")


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [("45s", 45), ("30m", 1800), ("1h", 3600), ("7d", 604800), ("90", 90)],
    ids=str,
)
def test_the_command_prints_the_token_alone(data: DataDirectory, ttl: str, seconds: int) -> None:
    """`$(gaggle token ada)` is usable as it is, in every unit of time."""
    result = CliRunner().invoke(app, ["token", "ada", "--ttl", ttl, "--data", str(data.path)])

    assert result.exit_code == 0
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", result.stdout)
    claims = jwt.decode(result.stdout.strip(), _key_set(data), algorithms=["EdDSA"]).claims
    assert claims["exp"] - claims["iat"] == seconds


def test_a_time_that_is_none_is_a_usage_error(data: DataDirectory) -> None:
    """A slip in --ttl is told as such, with exit code 2."""
    result = CliRunner().invoke(app, ["token", "ada", "--ttl", "soon", "--data", str(data.path)])

    assert result.exit_code == 2
    assert "soon" in result.output
