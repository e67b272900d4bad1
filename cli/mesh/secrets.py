"""secrets.json: the local mesh's secrets, as the secretstore component serves them.

| secret | what it is |
|---|---|
| database | connection string, for the sidecars' PostgreSQL components |
| redis-host, redis-password | the broker |
| token-jwks | public keys of the local issuer and of every service |
| issuer-key | private key of the local issuer; the auth service's |
| service-key-NAME | private key of one service |

What a person adds to the file (OPENAI_API_KEY, SMTP_PASSWORD, ...) is kept.
"""

import json
import secrets

from joserfc.jwk import OKPKey

from cli.errors import CommandError
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.keys import ISSUER_KEY_ID, jwks, private_jwk


def write_secrets(data: DataDirectory, *, database: str, redis_host: str, keys: dict[str, OKPKey]) -> dict[str, str]:
    """Brings secrets.json up to date and returns it; the Redis password is drawn once and kept."""
    known = read_secrets(data)
    known |= {
        "database": database,
        "redis-host": redis_host,
        "redis-password": known.get("redis-password") or secrets.token_urlsafe(24),
        "token-jwks": jwks(keys),
    }
    known |= {secret_name(key_id): private_jwk(key) for key_id, key in keys.items()}
    write_private(data.secrets_file, json.dumps(known, indent=2, sort_keys=True) + "\n")
    return known


def secret_name(key_id: str) -> str:
    """The secret that holds a private key."""
    return "issuer-key" if key_id == ISSUER_KEY_ID else f"service-key-{key_id}"


def read_secrets(data: DataDirectory) -> dict[str, str]:
    """The secrets there are; empty before the first start.

    Raises:
        CommandError: the file is not a JSON object of strings.
    """
    try:
        found = json.loads(data.secrets_file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CommandError(f"{data.secrets_file} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CommandError(f"{data.secrets_file} must be one JSON object of strings.")
    return found


def app_api_token(data: DataDirectory) -> str:
    """The token by which a service knows its own sidecar (APP_API_TOKEN), drawn once per data directory."""
    path = data.keys / "app-api-token"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()
