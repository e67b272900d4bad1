"""secrets.json: the local mesh's secrets, as the secretstore component serves them.

| secret | what it is |
|---|---|
| database | connection string, for the sidecars' PostgreSQL components |
| postgresql-secrets, todo-chatbot-secrets, backend-secrets | the same, under the names that the other sets use |
| redis-host, redis-password; rabbitmq-secrets; kafka-secrets | the broker, whichever the set has |
| token-jwks | public keys of the local issuer and of every service |
| issuer-key | private key of the local issuer; the auth service's |
| service-key-NAME | private key of one service |

A secret of several values is an object, as a Kubernetes secret is. What a person adds to the file (OPENAI_API_KEY,
SMTP_PASSWORD, ...) is kept.
"""

import json
import secrets
from collections.abc import Mapping

from joserfc.jwk import OKPKey

from cli.errors import CommandError
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.keys import ISSUER_KEY_ID, jwks, private_jwk

Secret = str | dict[str, str]

# Where connections look for tables that are named without a schema; see statestore-goose.
GOOSE_SCHEMA = "options=-c%20search_path%3Dgoose"


def write_secrets(
    data: DataDirectory, *, database: str, broker: Mapping[str, Secret], keys: dict[str, OKPKey]
) -> dict[str, Secret]:
    """Brings secrets.json up to date and returns it; `broker` are those of the broker."""
    known = read_secrets(data)
    values: dict[str, Secret] = {
        "postgresql-secrets": {
            "connection-string": database,
            "connection-string-goose": f"{database}&{GOOSE_SCHEMA}",
        },
        "todo-chatbot-secrets": {"DATABASE_URL": database},
        "backend-secrets": {"DATABASE_URL": database},
        **broker,
    }
    for name, secret in values.items():
        before = known.get(name)
        known[name] = {**before, **secret} if isinstance(before, dict) and isinstance(secret, dict) else secret
    known |= {"database": database, "token-jwks": jwks(keys)}
    known |= {secret_name(key_id): private_jwk(key) for key_id, key in keys.items()}
    write_private(data.secrets_file, json.dumps(known, indent=2, sort_keys=True) + "\n")
    return known


def secret_name(key_id: str) -> str:
    """The secret that holds a private key."""
    return "issuer-key" if key_id == ISSUER_KEY_ID else f"service-key-{key_id}"


def read_secrets(data: DataDirectory) -> dict[str, Secret]:
    """The secrets there are; empty before the first start.

    Raises:
        CommandError: the file is not a JSON object of strings and of objects of strings.
    """
    try:
        found = json.loads(data.secrets_file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CommandError(f"{data.secrets_file} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(_is_secret(value) for value in found.values()):
        raise CommandError(f"{data.secrets_file} must be one JSON object of strings, or of objects of strings.")
    return found


def _is_secret(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and all(isinstance(one, str) for one in value.values()))


def api_tokens(data: DataDirectory, service: str, *, both_ways: bool) -> dict[str, str]:
    """The tokens by which a service and its own sidecars know each other, drawn once and kept; no two services share.

    Args:
        data: where they are kept.
        service: the service's name.
        both_ways: whether the sidecar, too, asks for one. Else whoever is on this machine may use its API.
    """
    tokens = {"APP_API_TOKEN": _kept_token(data, f"{service}.app-api-token")}
    if both_ways:
        tokens["DAPR_API_TOKEN"] = _kept_token(data, f"{service}.dapr-api-token")
    return tokens


def _kept_token(data: DataDirectory, name: str) -> str:
    path = data.keys / name
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()
