"""Deliveries in one process, to real servers, on a store and a clock of the test's own: deaths, rivals, restarts."""

import random
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gaggle.notification.v1 import notification_pb2
from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification.delivering import Delivery
from services.notification.domain import MAX_PENDING, News
from services.notification.mail import Mailer
from services.notification.metrics import NotificationMetrics
from services.notification.owning import Owner
from services.notification.reading import Reader
from services.notification.settings import NotificationSettings
from services.notification.store import NotificationStore, Once
from services.notification.sweeping import Sweep
from services.notification.tokens import UnsubscribeTokens
from services.notification.webhook import Webhooks
from services.notification.writing import Writer
from services.runtime.errors import ConflictError, FailedPreconditionError, UnavailableError
from services.runtime.identity import Caller
from services.runtime.state import CommitFailedError
from services.runtime.telemetry import Metrics
from tests.notification.receivers import PASSWORD, USERNAME, HookServer, MailServer, make_certificate
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox

_USER = "ann"
_ADDRESS = "ann@example.org"
_CALLER = Caller(_USER, frozenset(), "", "gaggle", 0, 0, "token")
_MESSAGE = notification_pb2.NOTIFICATION_KIND_MESSAGE


class _Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 3, 2, 12, 0, 7, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def go(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class _Process:
    """The parts of one process."""

    def __init__(
        self, state: MemoryState, outbox: Any, clock: _Clock, settings: NotificationSettings, port: int, holder: str
    ) -> None:
        async def secret(name: str) -> str:
            known = {
                "SMTP_HOST": "localhost",
                "SMTP_PORT": str(port),
                "SMTP_USERNAME": USERNAME,
                "SMTP_PASSWORD": PASSWORD,
                "SMTP_FROM_EMAIL": "gaggle@example.org",
            }
            return known[name]

        metrics = NotificationMetrics(Metrics().registry)
        tokens = UnsubscribeTokens()
        tokens.use("key")
        self.store = NotificationStore(state, outbox, clock)  # type: ignore[arg-type]
        self.mailer = Mailer(settings, secret, tokens)
        self.delivery = Delivery(self.store, self.mailer, Webhooks(settings), settings, metrics, holder=holder)
        self.writer = Writer(self.store, self.delivery, tokens, settings, metrics)
        self.reader = Reader(self.store)
        self.sweep = Sweep(self.store, self.delivery, settings)

    async def work(self) -> None:
        """Deliver for whoever waits, by the caller's own hands."""
        while not self.delivery._waiting.empty():
            user_id = self.delivery._waiting.get_nowait()
            self.delivery._queued.discard(user_id)
            await self.delivery.deliver(user_id)

    async def swept(self) -> None:
        """Sweep, and deliver what was found."""
        self.sweep._renew_after = 0.0
        await self.sweep.once()
        await self.work()

    async def tell(self, title: str, event_id: str = "") -> None:
        """Have the user told something."""
        await self.writer.tell(_USER, News(_MESSAGE, title), Once(event_id=event_id or title))

    async def prefer(self, **fields: Any) -> None:
        """Set the user's preferences."""
        await self.writer.prefer(_CALLER, api.SetPreferencesRequest(**fields))

    async def parked(self) -> list[Any]:
        """What was given up."""
        return list((await self.reader.parked(api.ListParkedRequest(page_size=200))).parked)


class _Assembled:
    def __init__(self, mail: MailServer, outbox: Any, state: MemoryState) -> None:
        self.state = state
        self.clock = _Clock()
        self._outbox = outbox
        self._port = mail.port
        self._settings = NotificationSettings.model_validate(
            {
                "app_id": "n",
                "port": 1,
                "sidecar_port": 1,
                "app_api_token": "t",
                "smtp_ca_file": str(mail.certificate),
                "webhook_allowed_networks": ["127.0.0.0/8"],
            }
        )
        self.one = self.process("one")

    def process(self, holder: str) -> _Process:
        """Start a process."""
        return _Process(self.state, self._outbox, self.clock, self._settings, self._port, holder)


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    """A mail server with a certificate of its own."""
    server = MailServer(*make_certificate(tmp_path_factory.mktemp("mail")))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def assembled(mail: MailServer) -> AsyncIterator[_Assembled]:
    """One process, whose user has an address."""
    mail.messages.clear()
    mail.refused.clear()
    state = MemoryState()
    outbox = make_outbox(state, MemoryBroker())
    await outbox.start()
    found = _Assembled(mail, outbox, state)
    await found.one.prefer(email_address=_ADDRESS)
    await found.one.swept()
    yield found
    await outbox.stop(0.1)


def _subjects(mail: MailServer) -> list[str]:
    return [str(one["Subject"]) for one in mail.to(_ADDRESS)]


async def test_it_leaves_at_once_and_once(assembled: _Assembled, mail: MailServer) -> None:
    """An event that comes twice is one e-mail; nothing is left to be done or to be looked at."""
    for _ in range(2):
        await assembled.one.tell("a\nb", "e1")
        await assembled.one.work()
    assert _subjects(mail) == ["a b"]
    inbox = await assembled.one.store.find(_USER)
    assert (len(inbox.pending), inbox.deliverer, inbox.HasField("wake_time")) == (0, "", False)


async def test_a_death_before_the_outcome_sends_the_same_again(assembled: _Assembled, mail: MailServer) -> None:
    """A process that dies between sending and writing that down: another sends it under the same Message-ID."""
    await assembled.one.tell("again")
    document = await assembled.one.delivery._begin(_USER)
    assert document is not None
    await assembled.one.delivery._send(_USER, document)
    other = assembled.process("two")
    assembled.clock.go(20)
    await other.swept()
    assert len(mail.to(_ADDRESS)) == 1, "while the dead one's claim lasts nobody else delivers"
    assembled.clock.go(120)
    await other.swept()
    first, second = mail.to(_ADDRESS)
    assert first["Message-ID"] == second["Message-ID"]
    assembled.clock.go(300)
    await other.swept()
    assert len(mail.to(_ADDRESS)) == 2


async def test_a_restart_finds_what_was_committed(assembled: _Assembled, mail: MailServer) -> None:
    """What was told and not even begun when the process died leaves once its claim has run out."""
    await assembled.one.tell("later")
    reborn = assembled.process("one")
    await reborn.swept()
    assert _subjects(mail) == []
    assembled.clock.go(120)
    await reborn.swept()
    assert _subjects(mail) == ["later"]


async def test_a_server_that_is_away_is_asked_again(assembled: _Assembled, mail: MailServer) -> None:
    """While the mail server is away nothing is parked before patience is over; when it is back everything leaves."""
    mail.stop()
    try:
        for number in range(3):
            await assembled.one.tell(f"n{number}")
        await assembled.one.work()
        for _ in range(20):
            assembled.clock.go(600)
            await assembled.one.swept()
        assert len((await assembled.one.store.find(_USER)).pending) == 3
    finally:
        mail.start()
    assembled.clock.go(1200)
    await assembled.one.swept()
    assert sorted(_subjects(mail)) == ["n0", "n1", "n2"]
    assert await assembled.one.parked() == []


async def test_patience_ends(assembled: _Assembled, mail: MailServer) -> None:
    """What could not be delivered for a day is parked; an admin redrives it, and it leaves."""
    mail.stop()
    try:
        await assembled.one.tell("old")
        await assembled.one.work()
        assembled.clock.go(86_400 + 1000)
        await assembled.one.swept()
        (parked,) = await assembled.one.parked()
        assert "mail server" in parked.error
    finally:
        mail.start()
    answer = await assembled.one.writer.redrive(api.RedriveParkedRequest(all=True))
    assert list(answer.ids) == [parked.id]
    await assembled.one.work()
    assert _subjects(mail) == ["old"]
    assert await assembled.one.parked() == []


async def test_parked_ones_are_listed_in_buckets(assembled: _Assembled, mail: MailServer) -> None:
    """A hundred and ten parked deliveries are listed page by page, oldest first, and redriven a hundred at a time."""
    mail.refused.add(_ADDRESS)
    for number in range(110):
        await assembled.one.tell(f"n{number}")
    await assembled.one.work()
    request = api.ListParkedRequest(page_size=10)
    found: list[Any] = []
    while True:
        page = await assembled.one.reader.parked(request)
        found += page.parked
        assert 0 < len(page.parked) <= 10 + 63
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert len({one.id for one in found}) == 110
    mail.refused.clear()
    for count in (100, 10):
        assert len((await assembled.one.writer.redrive(api.RedriveParkedRequest(all=True))).ids) == count
        await assembled.one.work()
    assert sorted(_subjects(mail)) == sorted(f"n{number}" for number in range(110))
    assert await assembled.one.parked() == []
    assert len([key for key in assembled.state.items if key.startswith("parked:")]) <= 1


async def test_too_many_that_wait_are_parked(assembled: _Assembled) -> None:
    """Deliveries of a user that wait are bounded; what comes to more is not lost."""
    hours = notification_pb2.QuietHours(start="12:00", end="13:00")
    await assembled.one.prefer(quiet_hours=hours)
    for number in range(MAX_PENDING + 3):
        await assembled.one.tell(f"n{number}")
    assert len((await assembled.one.store.find(_USER)).pending) == MAX_PENDING
    assert len(await assembled.one.parked()) == 3


async def test_quiet_hours_and_digest(assembled: _Assembled, mail: MailServer) -> None:
    """What quiet hours hold back leaves at their end, a digest at its time as one e-mail, after a restart too."""
    await assembled.one.prefer(
        quiet_hours=notification_pb2.QuietHours(start="12:00", end="13:00"),
        digest=notification_pb2.Digest(times_of_day=["12:30", "14:00"]),
    )
    await assembled.one.tell("one")
    await assembled.one.tell("two")
    await assembled.one.work()
    reborn = assembled.process("other")
    assembled.clock.go(52 * 60)
    await reborn.swept()
    assert _subjects(mail) == []
    assembled.clock.go(60 * 8)
    await reborn.swept()
    assert _subjects(mail) == ["2 notifications"]
    inbox = await assembled.one.store.find(_USER)
    assert not inbox.pending


async def test_a_lost_answer_changes_nothing(assembled: _Assembled, mail: MailServer) -> None:
    """Commits whose answers are lost, or that lose races, leave one entry and one e-mail each."""
    chance = random.Random(5)

    def sometimes(_operations: Any) -> None:
        if chance.random() < 0.2:
            raise CommitFailedError(UnavailableError("statestore"))

    assembled.state.before_commit = assembled.state.after_commit = sometimes
    for number in range(10):
        for _ in range(10):
            try:
                await assembled.one.tell(f"n{number}")
            except (UnavailableError, ConflictError):
                continue
            break
        await assembled.one.work()
    assembled.state.before_commit = assembled.state.after_commit = lambda _operations: None
    assembled.clock.go(200)
    await assembled.one.swept()
    assert sorted(_subjects(mail)) == sorted(f"n{number}" for number in range(10))
    page = await assembled.one.reader.page(_USER, api.ListNotificationsRequest())
    assert [one.sequence for one in page.notifications] == list(range(10, 0, -1))


async def test_an_erased_user_keeps_nothing(assembled: _Assembled, mail: MailServer) -> None:
    """After an erasure there is no text of the user in the store, parked deliveries included, and nothing is told."""
    mail.refused.add(_ADDRESS)
    for number in range(70):
        await assembled.one.tell(f"secret-{number}")
    await assembled.one.work()
    assert len(await assembled.one.parked()) == 70
    assert await Owner(assembled.one.store).empty(_USER) == 70
    assert await assembled.one.parked() == []
    left = {key for key, item in assembled.state.items.items() if b"secret-" in item.value or b"@example" in item.value}
    assert {key.partition(":")[0] for key in left} <= {"outbox"}
    with pytest.raises(FailedPreconditionError):
        await assembled.one.tell("more")


async def test_a_webhook_that_fails_does_not_hold_up_e_mail(assembled: _Assembled, mail: MailServer) -> None:
    """Each channel goes on its own: e-mail leaves while a webhook is tried again."""
    with HookServer().running() as hooks:
        hooks.answers["/h"] = [503]
        webhook = notification_pb2.Webhook(url=f"http://localhost:{hooks.port}/h", secret="x" * 24)
        await assembled.one.prefer(webhook=webhook)
        await assembled.one.tell("both")
        await assembled.one.work()
        assert _subjects(mail) == ["both"]
        assert len(hooks.at("/h")) == 1
        assembled.clock.go(10)
        await assembled.one.swept()
        first, second = (headers["idempotency-key"] for headers, _ in hooks.at("/h"))
        assert first == second
        assert _subjects(mail) == ["both"]
