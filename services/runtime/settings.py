"""Settings from the environment.

One frozen class a service. Variables are prefixed GAGGLE_; those that Dapr's own command line hands to an app
(APP_ID, APP_PORT, DAPR_GRPC_PORT, ...) are taken under Dapr's names.
"""

from pathlib import Path
from typing import Self

import grpc
from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _dapr(name: str, own: str) -> AliasChoices:
    return AliasChoices(own, name)


class ServiceSettings(BaseSettings):
    """What every service is told."""

    model_config = SettingsConfigDict(env_prefix="GAGGLE_", frozen=True, extra="ignore", populate_by_name=True)

    app_id: str = Field(validation_alias=_dapr("APP_ID", "GAGGLE_APP_ID"))
    """This service's Dapr app id, suffix included."""

    app_id_suffix: str = ""
    """What the app ids of this mesh end in; empty for the bare ones."""

    host: str = "127.0.0.1"
    """Where to listen. Loopback, unless an operator says otherwise."""

    port: int = Field(ge=0, le=65535, validation_alias=_dapr("APP_PORT", "GAGGLE_PORT"))
    """The gRPC port."""

    sidecar_port: int = Field(ge=1, le=65535, validation_alias=_dapr("DAPR_GRPC_PORT", "GAGGLE_SIDECAR_PORT"))
    """The sidecar's gRPC port on this host."""

    sidecar_address: str = ""
    """A gRPC target that replaces host and port of the sidecar, for example `unix:/run/dapr.sock`."""

    app_api_token: SecretStr = Field(min_length=1, validation_alias=AliasChoices("APP_API_TOKEN"))
    """What the sidecar proves itself with when it delivers topics, jobs and bindings."""

    dapr_api_token: SecretStr = Field(default=SecretStr(""), validation_alias=AliasChoices("DAPR_API_TOKEN"))
    """What the sidecar wants of us; empty: nothing."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Prometheus metrics on this port of `host`; 0: none."""

    log_level: str = Field(default="info", pattern="(?i)^(debug|info|warning|error)$")
    """debug, info, warning or error."""

    otlp_endpoint: str = ""
    """Where traces go by OTLP over gRPC, for example `http://127.0.0.1:4317`; empty: nowhere."""

    zipkin_endpoint: str = ""
    """Where traces go in Zipkin's own format, for example `http://127.0.0.1:9411/api/v2/spans`; empty: nowhere."""

    trace_sample_ratio: float = Field(default=0.01, ge=0, le=1)
    """How many of the calls that bring no decision of their own are traced."""

    statestore: str = "statestore"
    """The state component."""

    pubsub: str = "pubsub"
    """The pub/sub component of the product's topics."""

    topic_names: dict[str, str] = {}
    """What topics are called in the broker, where that is not the product's own name: a JSON object."""

    fanout_pubsub: str = "pubsub-fanout"
    """The pub/sub component whose events reach every process."""

    secretstore: str = "secretstore"
    """The secret component."""

    secret_names: dict[str, str] = {}
    """Which secret of the store holds a credential, where that is one of several in it: a JSON object."""

    tls_certificate_file: str = ""
    """The certificate of the gRPC port in PEM, with those between it and its authority; empty: no TLS."""

    tls_key_file: str = ""
    """Its private key."""

    tls_authority_file: str = ""
    """Who signed such certificates, in PEM, for replicas that call each other; empty: the public authorities."""

    max_concurrent_calls: int = Field(default=1000, ge=1)
    """Unary calls at once; more are refused with RESOURCE_EXHAUSTED."""

    max_streams: int = Field(default=10_000, ge=1)
    """Open streams at once."""

    call_timeout_seconds: float = Field(default=10.0, gt=0)
    """A unary call's own limit, where the caller's deadline is later or absent."""

    drain_seconds: float = Field(default=5.0, ge=0)
    """How long running calls may take to end after SIGTERM."""

    token_issuer: str = "gaggle"  # noqa: S105 - a name
    """`iss` of the mesh's own tokens."""

    token_audience: str = "gaggle"  # noqa: S105 - a name
    """`aud` that a token must name."""

    outside_issuer: str = ""
    """`iss` of an outside issuer whose users are trusted too; empty: none."""

    outside_jwks_url: str = ""
    """Where that issuer's keys are (RFC 7517)."""

    better_auth: bool = True
    """Whether session tokens of a better-auth server are taken, by asking the auth service."""

    better_auth_cookie: str = "better-auth.session_token"
    """The cookie in which they may come, with or without `__Secure-` before it."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        return self

    @property
    def peer_credentials(self) -> grpc.ChannelCredentials | None:
        """What a replica of this service calls another one's port with; None: that has no TLS."""
        if not self.tls_certificate_file:
            return None
        authority = Path(self.tls_authority_file).read_bytes() if self.tls_authority_file else None
        return grpc.ssl_channel_credentials(authority)

    def sibling(self, service: str) -> str:
        """Give the app id of another service of this mesh."""
        return service + self.app_id_suffix

    def own(self, topic: str) -> str:
        """Give the name of a topic that meshes on one broker do not share."""
        return topic + self.app_id_suffix

    @property
    def sidecar_target(self) -> str:
        """The sidecar's gRPC target."""
        return self.sidecar_address or f"127.0.0.1:{self.sidecar_port}"
