"""Recipes on the real mesh: kept, found, changed, told of, given back."""

import asyncio
from typing import Any

import pytest

from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.recipe.v1 import recipe_pb2
from services.recipe import files
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh
from tests.recipe.corpus import needs_real, real, sample
from tests.recipe.running import Cook

pytestmark = pytest.mark.mesh


async def test_a_file_comes_back_to_the_byte(cook: Cook) -> None:
    """An imported file is given back as it came, and in the other format equal in meaning; the wrapper included."""
    for name, title in (("release-notes.yaml", "Release Notes"), ("wrapped.json", "Morning")):
        recipe = await cook.take(sample(name), category="Writing", tags=["notes", "Release"])
        assert (recipe.name, list(recipe.warnings)) == (title, [])
        same = await cook("ExportRecipe", recipe_id=recipe.id)
        assert same.content == sample(name)
        assert same.file_name == f"{title.lower().replace(' ', '-')}.{name.rpartition('.')[2]}"
        other = recipe_pb2.RECIPE_FORMAT_YAML if name.endswith("json") else recipe_pb2.RECIPE_FORMAT_JSON
        turned = await cook("ExportRecipe", recipe_id=recipe.id, format=other)
        assert files.read(turned.content).document == files.read(sample(name)).document
        again = await cook.take(turned.content)
        assert again.definition == recipe.definition
        assert (await cook("GetRecipe", recipe_id=recipe.id)).recipe == recipe


async def test_a_definition_is_stored_as_a_file_would_be(cook: Cook) -> None:
    """A recipe given field by field is held to the same rules, and exported it is a file that says so."""
    definition = (await cook.take(sample("release-notes.yaml"))).definition
    made = (await cook("CreateRecipe", definition=definition, name="Made")).recipe
    assert made.definition == definition
    exported = files.read((await cook("ExportRecipe", recipe_id=made.id)).content).document
    assert exported == files.read(sample("release-notes.yaml")).document
    definition.parameters[0].key = "2nd"
    refusal = await refused(cook("CreateRecipe", definition=definition))
    assert (refusal.code, refusal.reason, refusal.fields) == ("INVALID_ARGUMENT", "RECIPE_INVALID", ("definition",))
    definition.extra_json = "["
    refusal = await refused(cook("CreateRecipe", definition=definition))
    assert refusal.fields == ("definition.extra_json",)


async def test_a_broken_file_leaves_nothing(cook: Cook) -> None:
    """A file that does not parse is refused with line and column, and nothing is stored."""
    for name, line, column in (("broken-colon.yaml", "3", "26"), ("broken-quote.yaml", "8", "11")):
        refusal = await refused(cook("ImportRecipe", content=sample(name), recipe_id="broken"))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "RECIPE_INVALID")
        assert refusal.facts == {"line": line, "column": column}
        assert refusal.fields == ("content",)
    assert not (await cook("ListRecipes")).recipes
    assert (await refused(cook("GetRecipe", recipe_id="broken"))).code == "NOT_FOUND"


@needs_real
async def test_real_recipes(cook: Cook) -> None:
    """Every real file that is valid is kept and given back; the broken are refused; a missing part is a warning."""
    parts = {}
    for name in ("data-cleaner", "statistical-analyzer", "chart-generator"):
        parts[name.replace("-", "_")] = (await cook.take(real(f"subrecipes/{name}.yaml"))).id
    whole = await cook.take(real("data-analysis-pipeline.yaml"), sub_recipe_ids=parts)
    missing = [one for one in whole.warnings if one.sub_recipe]
    assert [(one.sub_recipe, one.line) for one in missing] == [("data_validator", 59)]
    assert {one.name: one.recipe_id for one in whole.definition.sub_recipes} == {**parts, "data_validator": ""}
    for name in ("analyze-pr.yaml", "change-log.yaml"):
        recipe = await cook.take(real(name))
        assert (await cook("ExportRecipe", recipe_id=recipe.id)).content == real(name)
    for name, line in (("quick-note.yaml", "17"), ("smart-task-organizer.yaml", "39")):
        refusal = await refused(cook("ImportRecipe", content=real(name)))
        assert refusal.reason == "RECIPE_INVALID"
        assert refusal.facts["line"] == line
    assert len((await cook("ListRecipes")).recipes) == 6


async def test_sub_recipes_are_bound(cook: Cook) -> None:
    """Sub-recipes are bound to the caller's recipes alone, by name; what is not bound is a warning."""
    checker = await cook.take(sample("subrecipes/checker.yaml"))
    whole = await cook.take(sample("pipeline.yaml"), sub_recipe_ids={"checker": checker.id})
    assert [one.sub_recipe for one in whole.warnings] == ["counter"]
    await cook("UpdateRecipe", recipe_id=whole.id, sub_recipe_ids={"counter": checker.id, "checker": ""})
    bound = (await cook("GetRecipe", recipe_id=whole.id)).recipe
    assert [one.recipe_id for one in bound.definition.sub_recipes] == ["", checker.id]
    assert [one.sub_recipe for one in bound.warnings] == ["checker"]
    assert (bound.etag, bound.version) == ("2", 1)
    for wrong in ({"checker": "nobody"}, {"other": checker.id}):
        refusal = await refused(cook("UpdateRecipe", recipe_id=whole.id, sub_recipe_ids=wrong))
        assert refusal.code == "INVALID_ARGUMENT"
        assert refusal.fields == (f"sub_recipe_ids[{next(iter(wrong))!r}]",)


async def test_lists_are_filtered(cook: Cook, stranger: Cook) -> None:
    """Lists are filtered by category, tags and words, page through everything, and show a user's own alone."""
    for number in range(7):
        tags = ["even"] if number % 2 == 0 else ["odd", "Small"]
        await cook.take(
            sample("wrapped.json"), name=f"Greeting {number}", category="A" if number < 3 else "B", tags=tags
        )
    assert [one.name for one in (await cook("ListRecipes", category="a")).recipes] == [
        "Greeting 2", "Greeting 1", "Greeting 0"
    ]  # fmt: skip
    found = (await cook("ListRecipes", tags=["ODD", "small"], category="B")).recipes
    assert [one.name for one in found] == ["Greeting 5", "Greeting 3"]
    assert [one.name for one in (await cook("ListRecipes", text="MORNING 4")).recipes] == ["Greeting 4"]
    assert not found[0].HasField("definition")
    names, token = [], ""
    while True:
        page = await cook("ListRecipes", page_size=3, page_token=token)
        names += [one.name for one in page.recipes]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"Greeting {number}" for number in reversed(range(7))]
    assert not (await stranger("ListRecipes")).recipes


async def test_found_by_name_whatever_its_case(cook: Cook, stranger: Cook) -> None:
    """Recipes are found by name, case-folded; renaming and deleting moves them; several may have one name."""
    first = await cook.take(sample("wrapped.json"), name="Straße")
    second = await cook.take(sample("wrapped.json"), name="STRASSE")
    found = (await cook("FindRecipes", name="strasse")).recipes
    assert [one.id for one in found] == [second.id, first.id]
    await cook("UpdateRecipe", recipe_id=first.id, name="Weg")
    await cook("DeleteRecipe", recipe_id=second.id)
    assert not (await cook("FindRecipes", name="strasse")).recipes
    assert [one.id for one in (await cook("FindRecipes", name="WEG")).recipes] == [first.id]
    assert not (await stranger("FindRecipes", name="weg")).recipes


async def test_versions_are_kept(cook: Cook) -> None:
    """Each new definition is a version that can be read and exported again; the same one again changes nothing."""
    recipe = await cook.take(sample("wrapped.json"))
    newer = sample("wrapped.json").replace("Good morning", "Good evening")
    updated = await cook("UpdateRecipe", recipe_id=recipe.id, content=newer, etag=recipe.etag)
    assert (updated.version, updated.etag) == (2, "2")
    assert (await cook("UpdateRecipe", recipe_id=recipe.id, content=newer)).etag == "2"
    old = (await cook("GetRecipe", recipe_id=recipe.id, version=1)).recipe
    assert old.definition.prompt == "Good morning, {{ who }}!"
    assert (await cook("GetRecipe", recipe_id=recipe.id)).recipe.definition.prompt == "Good evening, {{ who }}!"
    assert (await cook("ExportRecipe", recipe_id=recipe.id, version=1)).content == sample("wrapped.json")
    versions = await cook("ListRecipeVersions", recipe_id=recipe.id, page_size=1)
    assert [one.version for one in versions.versions] == [2]
    rest = await cook("ListRecipeVersions", recipe_id=recipe.id, page_size=1, page_token=versions.next_page_token)
    assert [one.version for one in rest.versions] == [1]
    assert not rest.next_page_token
    assert (await refused(cook("GetRecipe", recipe_id=recipe.id, version=3))).code == "NOT_FOUND"


async def test_two_writers_with_one_etag(cook: Cook) -> None:
    """Of writers that hold one etag one wins, the others are told STALE_ETAG."""
    recipe = await cook.take(sample("wrapped.json"))

    async def rename(name: str) -> Any:
        return await cook("UpdateRecipe", recipe_id=recipe.id, etag="1", name=name)

    results = await asyncio.gather(*(rename(f"N{n}") for n in range(6)), return_exceptions=True)
    lost = [one for one in results if isinstance(one, BaseException)]
    assert len(lost) == 5
    assert (await refused(rename("late"))).reason == "STALE_ETAG"


async def test_a_repeated_request_has_one_effect(cook: Cook) -> None:
    """The same request_id gives the first answer again; with another body it is refused."""
    first = await cook.take(sample("wrapped.json"), request_id="r1", tags=["a"])
    await cook("UpdateRecipe", recipe_id=first.id, name="Later")
    assert await cook.take(sample("wrapped.json"), request_id="r1", tags=["a"]) == first
    refusal = await refused(cook("ImportRecipe", content=sample("wrapped.json"), request_id="r1", tags=["b"]))
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert len((await cook("ListRecipes")).recipes) == 1


async def test_deleted_is_gone_and_repeatable(cook: Cook, stranger: Cook) -> None:
    """A deleted recipe is gone; deleting again is OK; its id stays taken a while; strangers see nothing."""
    recipe = await cook.take(sample("wrapped.json"), recipe_id="mine")
    theirs = await refused(stranger("GetRecipe", recipe_id="mine"))
    nobodys = await refused(stranger("GetRecipe", recipe_id="none"))
    assert (theirs.code, theirs.message.replace("mine", "none")) == (nobodys.code, nobodys.message)
    await cook("DeleteRecipe", recipe_id=recipe.id)
    await cook("DeleteRecipe", recipe_id=recipe.id)
    assert (await refused(cook("GetRecipe", recipe_id="mine"))).code == "NOT_FOUND"
    assert (
        await refused(cook("ImportRecipe", content=sample("wrapped.json"), recipe_id="mine"))
    ).code == "ALREADY_EXISTS"
    assert (await refused(stranger("DeleteRecipe", recipe_id="mine"))).code == "NOT_FOUND"


async def test_each_change_is_told_once(mesh: Mesh, cook: Cook, user: str) -> None:
    """Each change of a recipe is one event in the audit log, in the same commit's revision."""
    recipe = await cook.take(sample("wrapped.json"), category="C")
    await cook("UpdateRecipe", recipe_id=recipe.id, name="Two")
    await cook("DeleteRecipe", recipe_id=recipe.id)

    async with mesh.channel("audit") as channel:
        audit: Any = audit_service_pb2_grpc.AuditServiceStub(channel)

        async def told() -> list[tuple[str, int]]:
            request = audit_service_pb2.ListEventsRequest(
                filter=audit_service_pb2.EventFilter(entity_type="recipe", entity_id=recipe.id)
            )
            response = await audit.ListEvents(request, metadata=mesh.metadata(user), timeout=10)
            return sorted((one.event.event_type, one.event.revision) for one in response.entries)

        async def all_told() -> bool:
            return len(await told()) == 3

        await eventually(all_told, within=30, what="the log has the three events")
        assert await told() == [
            ("goose.recipe.created", 1), ("goose.recipe.deleted", 3), ("goose.recipe.updated", 2)
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("ImportRecipe", {}, "content"),
        ("ImportRecipe", {"content": "x", "recipe_id": "a b"}, "recipe_id"),
        ("ImportRecipe", {"content": "x", "tags": ["a", "a"]}, "tags"),
        ("ImportRecipe", {"content": "x", "tags": [""]}, "tags[0]"),
        ("ImportRecipe", {"content": "x", "category": "c" * 65}, "category"),
        ("ImportRecipe", {"content": "x", "format": 9}, "format"),
        ("ImportRecipe", {"content": "x", "request_id": "/"}, "request_id"),
        ("CreateRecipe", {}, "definition"),
        ("GetRecipe", {}, "recipe_id"),
        ("FindRecipes", {"name": " "}, "name"),
        ("ListRecipes", {"page_size": -1}, "page_size"),
        ("ListRecipes", {"page_token": "AAAA"}, "page_token"),
        ("UpdateRecipe", {"recipe_id": "x", "name": ""}, "name"),
        ("DeleteRecipe", {}, "recipe_id"),
        ("ListRecipeVersions", {"recipe_id": "x", "page_size": -1}, "page_size"),
        ("ExportRecipe", {"recipe_id": "x", "format": 7}, "format"),
    ],
)
async def test_bad_requests_are_refused(cook: Cook, method: str, fields: dict[str, Any], field: str) -> None:
    """A missing or invalid field is INVALID_ARGUMENT, and named."""
    refusal = await refused(cook(method, **fields))
    assert refusal.code == "INVALID_ARGUMENT"
    assert field in refusal.fields


async def test_a_file_over_the_limit(cook: Cook) -> None:
    """A file over the limit is RESOURCE_EXHAUSTED, with the limit."""
    refusal = await refused(cook("ImportRecipe", content="x" * (256 * 1024 + 1)))
    assert (refusal.code, refusal.reason, refusal.facts["limit"]) == (
        "RESOURCE_EXHAUSTED",
        "TOO_LARGE",
        str(256 * 1024),
    )
