"""Settings of the notification service."""

from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pydantic import Field

from services.runtime.settings import ServiceSettings


class NotificationSettings(ServiceSettings):
    """What the notification service is told beside the common settings.

    Where the mail server is, secrets say: SMTP_HOST, SMTP_PORT, SMTP_USERNAME, SMTP_PASSWORD, SMTP_FROM_EMAIL.
    """

    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    """How e-mail goes to the mail server; port 465 is always "tls". With "none" it goes in the clear, password too."""

    smtp_ca_file: str = ""
    """Certificates (PEM) that the mail server's is checked against; empty: the system's."""

    smtp_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long the mail server may take for one e-mail."""

    smtp_secrets_seconds: float = Field(default=30.0, ge=0)
    """How long what the secrets say of the mail server is kept in memory."""

    unsubscribe_url: str = ""
    """An https address that ends e-mail by POST, `{token}` in it stands for the token of `Unsubscribe`; empty: the
    header List-Unsubscribe names the sender's mailbox alone, and whoever reads it passes the token on."""

    unsubscribe_port: int = Field(default=0, ge=0, le=65535)
    """Where this service answers that address itself, by HTTP at `/unsubscribe?token={token}` of `host`; what ends TLS
    stands before it. 0: something else does."""

    webhook_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long a webhook may take to answer."""

    webhook_allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that webhooks may be in, and by http too, though they are private, link-local or the like; for example
    ["10.1.0.0/16"]."""

    first_pause_seconds: float = Field(default=5.0, gt=0)
    """After a delivery that failed; doubled each time, with a little chance."""

    longest_pause_seconds: float = Field(default=900.0, gt=0)
    """Between two attempts."""

    patience_seconds: float = Field(default=86_400.0, gt=0)
    """A delivery that failed for so long is parked."""

    claim_seconds: float = Field(default=30.0, gt=0, le=300)
    """For so long a process may begin to deliver what one user is owed before it writes down what came of it; then,
    and after what one more delivery may take, another takes over."""

    kept_notifications: int = Field(default=2000, ge=64)
    """The newest of a user that are kept, to the next multiple of 32."""

    sweep_seconds: float = Field(default=1.0, gt=0)
    """How often what is due is looked for: how late what was held back may leave."""

    sweep_lease_seconds: float = Field(default=15.0, gt=0)
    """After so long without a sweep another process takes it over."""
