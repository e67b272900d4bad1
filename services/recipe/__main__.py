"""Starts the recipe service."""

from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import recipe_service_pb2
from services.recipe.repository import CONTENT_CLEAN_UP, Repository
from services.recipe.servicer import RECIPE_ACCESS, RecipeServicer
from services.recipe.settings import RecipeSettings
from services.runtime.entities import Entities
from services.runtime.service import Exposed, Runtime, Wiring, run
from services.runtime.users import Users


def build(runtime: Runtime, settings: RecipeSettings) -> Wiring:  # noqa: ARG001
    """Put the service together."""
    users = Users(runtime.state)
    recipes = Entities(runtime.state, runtime.outbox, users, kind="recipe", head_class=document_pb2.RecipeHead)
    repository = Repository(runtime.state, recipes)
    services = recipe_service_pb2.DESCRIPTOR.services_by_name
    return Wiring(
        servicers=[Exposed(services["RecipeService"], RecipeServicer(repository), RECIPE_ACCESS)],
        start=[runtime.outbox.start],
        clean_ups={CONTENT_CLEAN_UP: repository.clean_up},
    )


if __name__ == "__main__":
    run("recipe", RecipeSettings, build)
