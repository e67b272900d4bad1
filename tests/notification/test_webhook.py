"""Where a webhook may lead, and how it is signed."""

import base64
from ipaddress import ip_address, ip_network

import pytest

from services.notification.outcome import DeliveryError
from services.notification.settings import NotificationSettings
from services.notification.webhook import Webhooks, allowed, literal_address, sign

ADDRESSES = {
    "public": ("93.184.216.34", True),
    "public-6": ("2606:2800:220:1::1", True),
    "loopback": ("127.0.0.1", False),
    "loopback-6": ("::1", False),
    "ten": ("10.1.2.3", False),
    "seventeen": ("172.16.0.1", False),
    "home": ("192.168.1.1", False),
    "metadata": ("169.254.169.254", False),
    "shared": ("100.64.0.1", False),
    "none": ("0.0.0.0", False),  # noqa: S104 - an address to be refused
    "multicast": ("224.0.0.1", False),
    "broadcast": ("255.255.255.255", False),
    "mapped": ("::ffff:127.0.0.1", False),
    "nat64": ("64:ff9b::7f00:1", False),
    "6to4": ("2002:7f00:1::", False),
    "unique-local": ("fd00::1", False),
    "link-local-6": ("fe80::1", False),
}


@pytest.mark.parametrize(("address", "good"), ADDRESSES.values(), ids=ADDRESSES)
def test_only_public_addresses_are_allowed(address: str, good: bool) -> None:  # noqa: FBT001 - a table's column
    """A webhook is told on a public address by https, anywhere else only if the operator allows that network."""
    assert allowed(ip_address(address), "https", ()) is good
    assert not allowed(ip_address(address), "http", ())
    everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    assert allowed(ip_address(address), "http", everything)


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1"])
def test_an_address_in_disguise_is_one(host: str) -> None:
    """What resolvers read as an address is judged as one."""
    assert str(literal_address(host)) == "127.0.0.1"
    assert literal_address("example.org") is None


async def test_a_name_that_leads_inside_is_refused_for_good() -> None:
    """A public name of a private address is found out when it is resolved."""
    settings = NotificationSettings.model_validate({"app_id": "n", "port": 1, "sidecar_port": 1, "app_api_token": "t"})
    with pytest.raises(DeliveryError, match="not allowed") as raised:
        await Webhooks(settings)._resolve("localhost", 443, "https")
    assert raised.value.for_good


def test_the_signature_is_the_specification_s() -> None:
    """The test vector of the Standard Webhooks libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert len(base64.b64decode(signature.removeprefix("v1,"))) == 32
