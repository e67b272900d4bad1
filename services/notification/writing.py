"""The changes that callers and events make, each as one commit."""

from collections.abc import Sequence

from google.protobuf.message import Message as ProtoMessage

from gaggle.common.v1 import error_reason_pb2
from gaggle.notification.state.v1 import document_pb2
from gaggle.notification.v1 import notification_pb2
from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification import domain
from services.notification.delivering import Delivery
from services.notification.domain import MAX_PENDING, PAGE, Edit, News, Preferences
from services.notification.metrics import NotificationMetrics
from services.notification.settings import NotificationSettings
from services.notification.store import NotificationStore, Once
from services.notification.tokens import UnsubscribeTokens
from services.notification.validation import MAX_IDS
from services.runtime.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.runtime.identity import Caller
from services.runtime.requests import body_hash
from services.runtime.state import Put, Remove

_SERVICE = "gaggle.notification.v1.NotificationService"
_TOGETHER = ("webhook", "quiet_hours", "digest")


class Writer:
    """Tells, marks as read, sets preferences, redrives."""

    def __init__(
        self,
        store: NotificationStore,
        delivery: Delivery,
        tokens: UnsubscribeTokens,
        settings: NotificationSettings,
        metrics: NotificationMetrics,
    ) -> None:
        """All are shared by the whole process."""
        self._store = store
        self._delivery = delivery
        self._tokens = tokens
        self._kept = settings.kept_notifications
        self._metrics = metrics

    async def tell(self, user_id: str, news: News, once: Once, traceparent: str | None = None) -> document_pb2.Answer:
        """Tell a user something, once. Raises ConflictError, FailedPreconditionError for an erased user."""
        made = False

        def apply(edit: Edit) -> bytes:
            nonlocal made
            if domain.kind_preferences(edit.document.preferences, news.kind).muted:
                return b""
            one = edit.add(news, self._kept)
            self._delivery.claim(edit)
            made = True
            return document_pb2.Answer(notification_id=one.id, sequence=one.sequence).SerializeToString()

        document, answer = await self._store.change(user_id, apply, once=once, traceparent=traceparent)
        if made:
            self._metrics.created.labels(domain.Kind.Name(news.kind)).inc()  # type: ignore[arg-type]
        if document.pending:
            self._delivery.look(user_id)
        return document_pb2.Answer.FromString(answer)

    async def send(self, caller: Caller, request: api.SendNotificationRequest) -> api.SendNotificationResponse:
        """Tell the user that a service acts for. Raises as `tell`."""
        news = News(request.kind, request.title, request.body, request.subject_type, request.subject_id)
        answer = await self.tell(caller.user_id, news, _once("SendNotification", request))
        return api.SendNotificationResponse(notification_id=answer.notification_id, sequence=answer.sequence)

    async def mark(self, caller: Caller, request: api.MarkReadRequest) -> api.MarkReadResponse:
        """Mark as read. Raises NotFoundError, ConflictError."""
        places = [domain.position_of(one) for one in request.notification_ids]
        pages = {place // PAGE for place in places if place}
        if request.through_sequence:
            pages.add(request.through_sequence // PAGE)

        def apply(edit: Edit) -> bytes:
            through = edit.document.last_sequence if request.all else request.through_sequence
            edit.mark(request.notification_ids, through)
            return document_pb2.Answer(unread_count=edit.unread()).SerializeToString()

        _, answer = await self._store.change(caller.user_id, apply, once=_once("MarkRead", request), pages=pages)
        return api.MarkReadResponse(unread_count=document_pb2.Answer.FromString(answer).unread_count)

    async def prefer(self, caller: Caller, request: api.SetPreferencesRequest) -> api.SetPreferencesResponse:
        """Change preferences. Raises ConflictError for a stale etag, InvalidArgumentError for a missing secret."""

        def apply(edit: Edit) -> bytes:
            document = edit.document
            if request.etag and request.etag != str(document.preferences_revision):
                raise ConflictError(
                    "the preferences have changed",
                    reason=error_reason_pb2.ERROR_REASON_STALE_ETAG,
                    metadata={"etag": request.etag, "current": str(document.preferences_revision)},
                )
            before = document.preferences.SerializeToString(deterministic=True)
            fields = _merge(document.preferences, request)
            if document.preferences.SerializeToString(deterministic=True) != before:
                edit.prefer(fields)
            return b""

        document, _ = await self._store.change(caller.user_id, apply, once=_once("SetPreferences", request))
        return api.SetPreferencesResponse(preferences=domain.shown_preferences(document))

    async def unsubscribe(self, request: api.UnsubscribeRequest) -> None:
        """End e-mail. Raises InvalidArgumentError."""
        user_id = self._tokens.read(request.token)
        if user_id is None:
            raise InvalidArgumentError({"token": "is no token of an e-mail of ours"})

        def apply(edit: Edit) -> bytes:
            if edit.document.preferences.email_address:
                edit.document.preferences.email_address = ""
                edit.prefer(["email_address"])
            return b""

        try:
            await self._store.change(user_id, apply)
        except FailedPreconditionError:
            return  # Erased: no e-mail comes any more.

    async def redrive(self, request: api.RedriveParkedRequest) -> api.RedriveParkedResponse:
        """Have parked deliveries tried again. Raises NotFoundError, FailedPreconditionError, ConflictError."""
        ids = list(request.ids)
        if request.all:
            first = 0
            while len(ids) < MAX_IDS and (buckets := await self._store.parked.buckets(first)):
                for number, _, document in buckets:
                    ids += [one.id for one in document.parked]
                    first = number + 1
            del ids[MAX_IDS:]
        done = []
        for parked_id in ids:
            if await self._redrive(parked_id):
                done.append(parked_id)
            elif not request.all:
                raise NotFoundError("parked delivery", parked_id)
        return api.RedriveParkedResponse(ids=done)

    async def _redrive(self, parked_id: str) -> bool:
        number = domain.position_of(parked_id)
        if number is None:
            return False
        one = _find((await self._store.parked.bucket(number))[1].parked, parked_id)
        if one is None:
            return False
        wanted = one

        def apply(edit: Edit) -> bytes:
            if len(edit.document.pending) >= MAX_PENDING:
                raise FailedPreconditionError(
                    f"{MAX_PENDING} deliveries of this user wait already", metadata={"state": "full"}
                )
            created = wanted.create_time.ToDatetime(edit.now.tzinfo)
            edit.plan(wanted.notification_id, wanted.kind, wanted.channel, edit.now, digest=False, create_time=created)
            self._delivery.claim(edit)
            return b""

        async def taking() -> Sequence[Put | Remove]:
            item, document = await self._store.parked.bucket(number)
            found = _find(document.parked, parked_id)
            if item is None or found is None:
                raise NotFoundError("parked delivery", parked_id)
            document.parked.remove(found)
            return await self._store.parked.taking(number, item, document)

        try:
            await self._store.change(wanted.user_id, apply, more=taking)
        except NotFoundError:
            return False  # Another admin was faster.
        except FailedPreconditionError as error:
            if error.reason != error_reason_pb2.ERROR_REASON_USER_ERASED:
                raise
            await self._store.unpark_all(wanted.user_id)
            return False
        self._delivery.look(wanted.user_id)
        return True


def _find(parked: Sequence[api.ParkedDelivery], parked_id: str) -> api.ParkedDelivery | None:
    return next((one for one in parked if one.id == parked_id), None)


def _once(method: str, request: ProtoMessage) -> Once:
    request_id: str = request.request_id  # type: ignore[attr-defined]
    return Once(request_id, body_hash(f"/{_SERVICE}/{method}", request)) if request_id else Once()


def _merge(preferences: Preferences, request: api.SetPreferencesRequest) -> list[str]:
    """Put what a request names in the place of what was; gives the fields."""
    fields = [one for one in ("email_address", "time_zone") if request.HasField(one)]
    for field in fields:
        setattr(preferences, field, getattr(request, field))
    before = notification_pb2.Webhook()
    before.CopyFrom(preferences.webhook)
    for field in _TOGETHER:
        if request.HasField(field):  # type: ignore[arg-type]
            fields.append(field)
            getattr(preferences, field).CopyFrom(getattr(request, field))
    if request.HasField("webhook"):
        _keep_secret(preferences, before)
    for one in request.kinds:
        others = [each for each in preferences.kinds if each.kind != one.kind]
        del preferences.kinds[:]
        preferences.kinds.extend([*others, one])
    return [*fields, *(["kinds"] if request.kinds else [])]


def _keep_secret(preferences: Preferences, before: notification_pb2.Webhook) -> None:
    """See that there is a secret: a new one, or the old one for the old URL."""
    webhook = preferences.webhook
    webhook.secret_set = False
    if not webhook.url:
        preferences.ClearField("webhook")
        return
    if not webhook.secret and webhook.url == before.url:
        webhook.secret = before.secret
    if not webhook.secret:
        raise InvalidArgumentError({"webhook.secret": "must be set for a new URL"})
