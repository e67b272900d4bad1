"""Starts the recipe service."""

from gaggle.agent.v1 import agent_service_pb2_grpc
from gaggle.conversation.v1 import conversation_service_pb2_grpc
from gaggle.extension.v1 import extension_service_pb2_grpc
from gaggle.owner.v1 import owner_service_pb2
from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import execution_service_pb2, recipe_service_pb2
from services.recipe.acting import Actions
from services.recipe.executions import NUDGE, Executions
from services.recipe.owning import Owner
from services.recipe.repository import CONTENT_CLEAN_UP, Repository
from services.recipe.servicer import (
    EXECUTION_ACCESS,
    RECIPE_ACCESS,
    ExecutionServicer,
    RecipeServicer,
)
from services.recipe.settings import RecipeSettings
from services.recipe.stepping import Stepper
from services.recipe.watching import Watcher
from services.recipe.workflow import Workflows
from services.runtime import topics
from services.runtime.callbacks import Subscription
from services.runtime.entities import Entities
from services.runtime.erasure import Erasure
from services.runtime.invocation import Peer
from services.runtime.owning import OWNER_ACCESS, OwnerServicer
from services.runtime.service import Exposed, Runtime, Wiring, run
from services.runtime.users import Users


def build(runtime: Runtime, settings: RecipeSettings) -> Wiring:
    """Put the service together."""
    users = Users(runtime.state)
    recipes = Entities(runtime.state, runtime.outbox, users, kind="recipe", head_class=document_pb2.RecipeHead)
    runs = Entities(runtime.state, runtime.outbox, users, kind="execution", head_class=document_pb2.ExecutionHead)
    repository = Repository(runtime.state, recipes)
    executions = Executions(runtime.state, runs, repository, settings)
    actions = Actions(
        Peer(runtime.sidecar, settings.sibling(settings.agent_app), agent_service_pb2_grpc.AgentServiceStub),
        Peer(
            runtime.sidecar, settings.sibling(settings.extension_app), extension_service_pb2_grpc.ExtensionServiceStub
        ),
        Peer(
            runtime.sidecar,
            settings.sibling(settings.conversation_app),
            conversation_service_pb2_grpc.ConversationServiceStub,
        ),
        # Tokens are there once the service is ready.
        lambda user_id: runtime.tokens.issue(user_id),  # noqa: PLW0108
        settings,
    )
    stepper = Stepper(executions, actions, settings)
    workflows = Workflows(runtime.sidecar, settings, executions, actions, runtime.tracing)
    executions.nudge = workflows.nudge
    owner = Owner(users, repository, executions, workflows.nudge)
    erasure = Erasure(runtime.state, runtime.outbox, runtime.name, owner.empty)
    dead = topics.dead_letter_topic(settings.app_id)
    recipe_services = recipe_service_pb2.DESCRIPTOR.services_by_name
    execution_services = execution_service_pb2.DESCRIPTOR.services_by_name
    owner_services = owner_service_pb2.DESCRIPTOR.services_by_name
    watcher = Watcher(executions, settings.watch_poll_seconds)
    return Wiring(
        servicers=[
            Exposed(recipe_services["RecipeService"], RecipeServicer(repository), RECIPE_ACCESS),
            Exposed(execution_services["ExecutionService"], ExecutionServicer(executions, watcher), EXECUTION_ACCESS),
            Exposed(owner_services["EntityOwnerService"], OwnerServicer(owner), OWNER_ACCESS),
        ],
        subscriptions=[
            Subscription(topics.USER_ERASED, erasure.take, dead_letter_topic=dead),
            Subscription(topics.TOOL_EXECUTED, owner.on_tool_executed, dead_letter_topic=dead),
        ],
        start=[runtime.outbox.start, lambda: workflows.start(stepper)],
        stop=[workflows.stop],
        clean_ups={CONTENT_CLEAN_UP: repository.clean_up, NUDGE: workflows.nudge},
    )


if __name__ == "__main__":
    run("recipe", RecipeSettings, build)
