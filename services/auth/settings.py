"""What the auth service is told, beside what every service is."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class AuthSettings(ServiceSettings):
    """Settings of the auth service."""

    token_ttl_seconds: int = Field(default=3600, ge=1, le=86_400)
    """How long a token lasts that is issued without a ttl."""
