"""Which models there are, by the names that callers use."""

from collections.abc import Awaitable, Callable

from services.agent.models.base import Model
from services.agent.models.dapr_conversation import DaprConversationModel
from services.agent.models.offline import OfflineModel
from services.agent.models.openai_compatible import OpenAIClients, OpenAIModel
from services.agent.settings import AgentSettings, DaprModel, Endpoint, ModelSettings
from services.runtime.errors import InvalidArgumentError
from services.runtime.sidecar import Sidecar

_MOST_NAME_BYTES = 256


class Catalog:
    """Finds models. A model of an endpoint need not be listed to be named."""

    def __init__(self, settings: AgentSettings, sidecar: Sidecar, secret: Callable[[str], Awaitable[str]]) -> None:
        """`secret` reads an endpoint's key."""
        self._default = settings.default_model
        self._endpoints = {one.name: one for one in settings.model_endpoints}
        self._clients = OpenAIClients(secret)
        self._models: dict[str, Model] = {"offline": OfflineModel()}
        for component in settings.dapr_models:
            model = _dapr(component, sidecar)
            self._models[model.name] = model
        for endpoint in settings.model_endpoints:
            for name, known in endpoint.models.items():
                listed = self._openai(endpoint, name, known)
                self._models[listed.name] = listed

    def find(self, name: str) -> Model:
        """Find a model; an empty name gives the default one. Raises InvalidArgumentError."""
        wanted = name or self._default
        if (model := self._models.get(wanted)) is not None:
            return model
        endpoint, _, model_name = wanted.partition(":")
        if endpoint not in self._endpoints or not model_name or len(wanted.encode()) > _MOST_NAME_BYTES:
            raise InvalidArgumentError({"model": "there is no model of this name; ListModels has the names"})
        return self._openai(self._endpoints[endpoint], model_name, ModelSettings())

    def label(self, model: Model) -> str:
        """Give the name that metrics have for a model: users choose those that are not listed, as many as they like."""
        return model.name if model.name in self._models else f"{model.provider}:other"

    def listed(self) -> list[Model]:
        """List what is known, the default one first."""
        return sorted(self._models.values(), key=lambda one: (one.name != self._default, one.name))

    def forget_key(self, provider: str) -> None:
        """An endpoint refused its key: read it again for the next call."""
        self._clients.forget(provider)

    async def close(self) -> None:
        """Close the connections to endpoints."""
        await self._clients.close()

    def _openai(self, endpoint: Endpoint, model: str, known: ModelSettings) -> OpenAIModel:
        return OpenAIModel(
            lambda: self._clients.client(endpoint.name, endpoint.base_url, endpoint.secret, endpoint.timeout_seconds),
            endpoint=endpoint.name,
            model=model,
            context_tokens=known.context_tokens,
            tools=known.tools,
            prices=known.prices,
            max_tokens_field=endpoint.max_tokens_field,
        )


def _dapr(one: DaprModel, sidecar: Sidecar) -> DaprConversationModel:
    return DaprConversationModel(
        sidecar,
        one.component,
        context_tokens=one.model.context_tokens,
        tools=one.model.tools,
        prices=one.model.prices,
        timeout_seconds=one.timeout_seconds,
    )
