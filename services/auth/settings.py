"""What the auth service is told, beside what every service is."""

from pydantic import AliasChoices, Field, ValidationInfo, field_validator

from services.runtime.settings import ServiceSettings


def _named(name: str) -> AliasChoices:
    return AliasChoices(name, f"GAGGLE_{name}")


class AuthSettings(ServiceSettings):
    """Settings of the auth service."""

    token_ttl_seconds: int = Field(default=3600, ge=1, le=86_400)
    """How long a token lasts that is issued without a ttl."""

    session_cache_seconds: float = Field(default=5.0, ge=0, le=60)
    """How long a session of better-auth is believed, by all services together, before it is asked about again. One that
    was revoked is refused after so long at the latest."""

    use_dapr_invocation: bool = Field(default=True, validation_alias=_named("USE_DAPR_INVOCATION"))
    """Ask the better-auth server through the sidecar; else straight, at BETTER_AUTH_URL."""

    dapr_app_id_auth: str = Field(
        default="better-auth-service", min_length=1, validation_alias=_named("DAPR_APP_ID_AUTH")
    )
    """The better-auth server's Dapr app id, as it is: it belongs to no mesh of ours and takes no suffix."""

    dapr_http_url: str = Field(default="", pattern="^(https?://.+)?$", validation_alias=_named("DAPR_HTTP_URL"))
    """The sidecar's HTTP API; empty: on this host, at DAPR_HTTP_PORT."""

    dapr_http_port: int = Field(default=3500, ge=1, le=65535, validation_alias=_named("DAPR_HTTP_PORT"))
    """The port of the sidecar's HTTP API."""

    better_auth_url: str = Field(
        default="", pattern="^(https?://.+)?$", validate_default=True, validation_alias=_named("BETTER_AUTH_URL")
    )
    """Where the better-auth server is, without its path: `https://auth.example.com`."""

    better_auth_path: str = Field(default="/api/auth/get-session", pattern="^/")
    """The server's path; another one if it was given another `basePath`."""

    better_auth_timeout_seconds: float = Field(default=3.0, gt=0, le=8)
    """How long one look-up may take."""

    better_auth_admin_role: str = ""
    """The role of better-auth's admin plugin whose users are admins here too; empty: none is."""

    better_auth_failures: int = Field(default=5, ge=1)
    """After so many failed look-ups in a row the server is left alone for a while."""

    better_auth_pause_seconds: float = Field(default=5.0, gt=0)
    """That while; then one look-up tries whether it is back."""

    @field_validator("better_auth_url")
    @classmethod
    def _direct_needs_url(cls, url: str, info: ValidationInfo) -> str:
        if not url and info.data.get("better_auth") and not info.data.get("use_dapr_invocation"):
            raise ValueError("BETTER_AUTH_URL must be set where USE_DAPR_INVOCATION is false")
        return url

    @property
    def better_auth_target(self) -> str:
        """The URL of get-session."""
        if not self.use_dapr_invocation:
            return self.better_auth_url.rstrip("/") + self.better_auth_path
        sidecar = self.dapr_http_url.rstrip("/") or f"http://127.0.0.1:{self.dapr_http_port}"
        return f"{sidecar}/v1.0/invoke/{self.dapr_app_id_auth}/method{self.better_auth_path}"
