"""Recipes in the state store: heads, contents by version, and an index of names.

A recipe's content is kept as the file that it came in; what it says is read from that each time it is asked for.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format

from gaggle.common.v1 import error_reason_pb2
from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import event_pb2, recipe_pb2
from gaggle.recipe.v1 import recipe_service_pb2 as api
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from gaggle.runtime.state.v1 import entity_pb2
from services.recipe import checking, definitions, files
from services.recipe.errors import RecipeInvalidError
from services.recipe.files import Format, RecipeFile, RecipeFileError
from services.recipe.validation import MAX_NAME_BYTES
from services.runtime import paging, topics
from services.runtime.entities import Draft, Entities, advance
from services.runtime.errors import ConflictError, InvalidArgumentError, NotFoundError, TooLargeError
from services.runtime.ids import new_id
from services.runtime.keys import user_part
from services.runtime.requests import body_hash
from services.runtime.state import Item, Put, Remove, StateStore

CONTENT_CLEAN_UP = "recipe.contents"
MAX_OF_ONE_NAME = 100
_PAGE = 20
_MOST_PAGE = 100
_REMOVED_AT_ONCE = 50
_FORMATS = {Format.YAML: recipe_pb2.RECIPE_FORMAT_YAML, Format.JSON: recipe_pb2.RECIPE_FORMAT_JSON}
_KINDS: dict[int, Format] = {int(number): kind for kind, number in _FORMATS.items()}

Head = document_pb2.RecipeHead


@dataclass(frozen=True, slots=True)
class Examined:
    """A file that is a recipe, and what was noticed."""

    file: RecipeFile
    notices: Sequence[checking.Notice]

    @property
    def title(self) -> str:
        """The recipe's."""
        return str(self.file.recipe["title"])

    def warnings(self, bindings: Mapping[str, str]) -> list[recipe_pb2.RecipeWarning]:
        """Say what was noticed, sub-recipes that are not bound first."""
        found = []
        for index, one in enumerate(self.file.recipe.get("sub_recipes") or ()):
            if one["name"] not in bindings:
                line, column = self.file.place(("sub_recipes", index))
                text = f"the sub-recipe {one['name']!r} ({one['path']}) is not bound to a recipe"
                found.append(recipe_pb2.RecipeWarning(message=text, line=line, column=column, sub_recipe=one["name"]))
        return found + [
            recipe_pb2.RecipeWarning(message=one.message, line=one.line, column=one.column) for one in self.notices
        ]

    def definition(self, bindings: Mapping[str, str]) -> recipe_pb2.RecipeDefinition:
        """Spell it as a message."""
        message = definitions.to_message(self.file.recipe)
        for one in message.sub_recipes:
            one.recipe_id = bindings.get(one.name, "")
        return message


async def examine(content: str, wanted: int = 0, *, field: str = "content") -> Examined:
    """Read and check a file. Raises RecipeInvalidError, naming `field`, or TooLargeError."""
    size = len(content.encode())
    if size > files.MAX_BYTES:
        raise TooLargeError(f"{field} in bytes", size=size, limit=files.MAX_BYTES)

    def work() -> Examined:
        file = files.read(content, _KINDS.get(wanted))
        return Examined(file, checking.check(file))

    try:
        # Large files take a second: that must not stand in others' way.
        return await asyncio.to_thread(work)
    except RecipeFileError as fault:
        raise RecipeInvalidError(field, fault) from fault


async def written(definition: recipe_pb2.RecipeDefinition) -> str:
    """Write a definition as a file. Raises InvalidArgumentError for a JSON field that is none."""
    try:
        document = definitions.to_document(definition)
    except ValueError as error:
        field, _, what = str(error).partition(": ")
        raise InvalidArgumentError({f"definition.{field}": what}) from error
    return await asyncio.to_thread(files.write, document, Format.YAML)


class Repository:
    """The recipes of all users."""

    def __init__(self, state: StateStore, entities: Entities[Head]) -> None:
        """`entities` are those of kind "recipe"."""
        self._state = state
        self.entities = entities

    # -- keys

    def content_key(self, user_id: str, recipe_id: str, incarnation: int, version: int) -> str:
        """Key of one of a recipe's contents."""
        return f"{self.entities.key(user_id, recipe_id)}:v{incarnation}-{version}"

    @staticmethod
    def name_key(user_id: str, name: str) -> str:
        """Key of the recipes of one name; a digest keeps the name itself out of keys."""
        digest = hashlib.blake2b(name.strip().casefold().encode(), digest_size=16).hexdigest()
        return f"recipe-name:{user_part(user_id)}:{digest}"

    # -- reading

    async def get(self, user_id: str, recipe_id: str, version: int | None = None) -> recipe_pb2.Recipe:
        """Read a recipe with its definition. Raises NotFoundError."""
        head = await self.entities.get(user_id, recipe_id)
        examined = await self.content(user_id, head, version)
        recipe = describe(head)
        recipe.definition.CopyFrom(examined.definition(head.sub_recipe_ids))
        if version is not None and version != head.recipe.version:
            recipe.version = version
            recipe.title, recipe.description = recipe.definition.title, recipe.definition.description
            del recipe.warnings[:]
            recipe.warnings.extend(examined.warnings(head.sub_recipe_ids))
        return recipe

    async def content(self, user_id: str, head: Head, version: int | None = None) -> Examined:
        """Read what a recipe says or said. Raises NotFoundError for a version that it never had."""
        stored = await self._stored(user_id, head, version)
        return await examine(stored.content, stored.format)

    async def _stored(self, user_id: str, head: Head, version: int | None) -> document_pb2.RecipeContent:
        wanted = head.recipe.version if version is None else version
        if not 0 < wanted <= head.recipe.version:
            raise NotFoundError("recipe version", f"{head.entity.id}/{wanted}")
        key = self.content_key(user_id, head.entity.id, head.entity.incarnation, wanted)
        return document_pb2.RecipeContent.FromString((await self._state.require([key]))[key].value)

    async def page(self, user_id: str, request: api.ListRecipesRequest) -> api.ListRecipesResponse:
        """List a user's recipes."""
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST_PAGE)
        category = request.category.casefold()
        tags = {tag.casefold() for tag in request.tags}
        words = request.text.casefold().split()

        def match(head: Head) -> bool:
            recipe = head.recipe
            if category and recipe.category.casefold() != category:
                return False
            if not tags <= {tag.casefold() for tag in recipe.tags}:
                return False
            text = f"{recipe.name}\n{recipe.title}\n{recipe.description}".casefold() if words else ""
            return all(word in text for word in words)

        scope = (category, *sorted(tags), "\0", *words)
        heads, token = await self.entities.page(user_id, size=size, token=request.page_token, scope=scope, match=match)
        return api.ListRecipesResponse(recipes=[describe(head) for head in heads], next_page_token=token)

    async def named(self, user_id: str, name: str) -> list[recipe_pb2.Recipe]:
        """Find recipes by name, newest created first."""
        entry, _ = await self._names(self.name_key(user_id, name))
        heads = await self.entities.get_many(user_id, list(reversed(entry.recipe_ids)))
        wanted = name.strip().casefold()
        return [describe(head) for head in heads if head.recipe.name.strip().casefold() == wanted]

    async def versions(self, user_id: str, request: api.ListRecipeVersionsRequest) -> api.ListRecipeVersionsResponse:
        """List the definitions that a recipe has had, newest first."""
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST_PAGE)
        head = await self.entities.get(user_id, request.recipe_id)
        scope = ("versions", user_id, request.recipe_id)
        first = int(paging.decode(request.page_token, *scope).get("v", head.recipe.version))
        wanted = range(min(first, head.recipe.version), max(first - size, 0), -1)
        response = api.ListRecipeVersionsResponse()
        for version in wanted:
            stored = await self._stored(user_id, head, version)
            response.versions.add(
                version=version,
                create_time=stored.create_time,
                title=stored.title,
                size=len(stored.content.encode()),
                format=stored.format,
            )
        if first - size > 0:
            response.next_page_token = paging.encode({"v": first - size}, *scope)
        return response

    async def export(self, user_id: str, request: api.ExportRecipeRequest) -> api.ExportRecipeResponse:
        """Give a recipe as a file."""
        head = await self.entities.get(user_id, request.recipe_id)
        version = request.version if request.HasField("version") else None
        stored = await self._stored(user_id, head, version)
        wanted = request.format or stored.format
        content = stored.content
        if wanted != stored.format:
            document = (await examine(content, stored.format)).file.document
            content = await asyncio.to_thread(files.write, document, _KINDS[wanted])
        stem = "-".join("".join(c if c.isalnum() else " " for c in head.recipe.name.lower()).split())[:64] or "recipe"
        file_name = f"{stem}.{_KINDS[wanted].value}"
        return api.ExportRecipeResponse(content=content, format=wanted, file_name=file_name)

    # -- changing

    async def create(self, user_id: str, request: api.CreateRecipeRequest) -> recipe_pb2.Recipe:
        """Store a recipe given as a message."""
        content = await written(request.definition)
        examined = await examine(content, recipe_pb2.RECIPE_FORMAT_YAML, field="definition")
        bindings = {one.name: one.recipe_id for one in request.definition.sub_recipes if one.recipe_id}
        return await self._create(user_id, "CreateRecipe", request, examined, request.name, bindings)

    async def take(self, user_id: str, request: api.ImportRecipeRequest) -> recipe_pb2.Recipe:
        """Store a recipe given as a file."""
        examined = await examine(request.content, request.format)
        wrapped = examined.file.document.get("name") if examined.file.wrapped else None
        name = request.name or (wrapped if isinstance(wrapped, str) else "")
        return await self._create(user_id, "ImportRecipe", request, examined, name, dict(request.sub_recipe_ids))

    async def _create(
        self, user_id: str, method: str, request: Any, examined: Examined, name: str, bindings: dict[str, str]
    ) -> recipe_pb2.Recipe:
        recipe = recipe_pb2.Recipe(
            name=_cut(name.strip() or examined.title), category=request.category, tags=request.tags, version=1
        )
        _describe_content(recipe, examined, bindings)
        recipe_id = request.recipe_id or new_id()

        async def build(entity: entity_pb2.Entity) -> Draft[Head]:
            await self._check_bindings(user_id, examined, bindings)
            head = Head(entity=entity, recipe=recipe, sub_recipe_ids=bindings)
            operations = [
                self._content(user_id, entity, 1, examined),
                *await self._renaming(user_id, recipe_id, "", recipe.name),
            ]
            payload = _changed_event(head)
            return Draft(head, _answer(head), {topics.RECIPE_CREATED: payload}, operations)

        answer = await self.entities.create(user_id, recipe_id, request.request_id, body_hash(method, request), build)
        given = document_pb2.RecipeAnswer.FromString(answer)
        recipe.id, recipe.etag = given.recipe_id, str(given.revision)
        recipe.create_time.CopyFrom(given.create_time)
        recipe.update_time.CopyFrom(given.update_time)
        recipe.definition.CopyFrom(examined.definition(bindings))
        return recipe

    async def update(self, user_id: str, request: api.UpdateRecipeRequest) -> api.UpdateRecipeResponse:
        """Change the fields that are set."""
        content = request.content if request.HasField("content") else None
        new: Examined | None = None
        if request.HasField("definition"):
            new = await examine(await written(request.definition), recipe_pb2.RECIPE_FORMAT_YAML, field="definition")
        elif content is not None:
            new = await examine(content)

        async def apply(head: Head) -> Draft[Head] | bytes:
            _check_etag(head, request.etag)
            before = Head()
            before.CopyFrom(head)
            operations: list[Put | Remove] = []
            recipe = head.recipe
            if request.HasField("name"):
                recipe.name = request.name.strip()
                operations += await self._renaming(user_id, head.entity.id, before.recipe.name, recipe.name)
            if request.HasField("category"):
                recipe.category = request.category
            if request.HasField("tags"):
                del recipe.tags[:]
                recipe.tags.extend(request.tags.tags)
            operations += await self._replacing(user_id, head, request, new)
            changed = _changes(before, head)
            if not changed:
                return _answer(before)
            advance(head.entity)
            payload = _changed_event(head, changed)
            return Draft(head, _answer(head), {topics.RECIPE_UPDATED: payload}, operations)

        digest = body_hash("UpdateRecipe", request)
        answer = await self.entities.change(user_id, request.recipe_id, request.request_id, digest, apply)
        given = document_pb2.RecipeAnswer.FromString(answer)
        return api.UpdateRecipeResponse(etag=str(given.revision), version=given.version, update_time=given.update_time)

    async def _replacing(
        self, user_id: str, head: Head, request: api.UpdateRecipeRequest, new: Examined | None
    ) -> list[Put]:
        """Plan a new version, if what it says is new, and new bindings."""
        bound = {one.name: one.recipe_id for one in request.definition.sub_recipes if one.recipe_id}
        wanted = {**head.sub_recipe_ids, **bound, **request.sub_recipe_ids}
        if new is None and wanted == dict(head.sub_recipe_ids):
            return []
        current = await self.content(user_id, head)
        puts = []
        if new is not None and (new.file.content, new.file.format) != (current.file.content, current.file.format):
            head.recipe.version += 1
            puts.append(self._content(user_id, head.entity, head.recipe.version, new))
            current = new
        names = checking.sub_recipe_names(current.file.recipe)
        asked = {**bound, **request.sub_recipe_ids}
        await self._check_bindings(user_id, current, {name: one for name, one in asked.items() if one})
        for name in set(head.sub_recipe_ids) | set(wanted):
            if wanted.get(name) and name in names:
                head.sub_recipe_ids[name] = wanted[name]
            else:
                head.sub_recipe_ids.pop(name, None)
        _describe_content(head.recipe, current, head.sub_recipe_ids)
        return puts

    async def delete(self, user_id: str, request: api.DeleteRecipeRequest, *, cause: str = "deleted") -> None:
        """Take a recipe away. Raises NotFoundError."""

        async def bury(head: Head) -> Draft[Head]:
            _check_etag(head, request.etag)
            payload = event_pb2.RecipeDeletedEvent(name=head.recipe.name, cause=cause)
            work = document_pb2.ContentCleanUp(
                user_id=user_id,
                recipe_id=head.entity.id,
                incarnation=head.entity.incarnation,
                versions=head.recipe.version,
            )
            return Draft(
                Head(),
                b"",
                {topics.RECIPE_DELETED: json_format.MessageToDict(payload)},
                [*await self._renaming(user_id, head.entity.id, head.recipe.name, "")],
                [runtime_pb2.CleanUp(kind=CONTENT_CLEAN_UP, argument=work.SerializeToString())],
            )

        digest = body_hash("DeleteRecipe", request)
        await self.entities.delete(user_id, request.recipe_id, request.request_id, digest, bury)

    async def clean_up(self, argument: bytes) -> None:
        """Remove the contents of a deleted recipe."""
        work = document_pb2.ContentCleanUp.FromString(argument)
        for first in range(1, work.versions + 1, _REMOVED_AT_ONCE):
            versions = range(first, min(first + _REMOVED_AT_ONCE, work.versions + 1))
            await self._state.commit(
                Remove(self.content_key(work.user_id, work.recipe_id, work.incarnation, one)) for one in versions
            )

    def _content(self, user_id: str, entity: entity_pb2.Entity, version: int, examined: Examined) -> Put:
        stored = document_pb2.RecipeContent(
            content=examined.file.content, format=_FORMATS[examined.file.format], title=examined.title
        )
        stored.create_time.FromDatetime(datetime.now(UTC))
        return Put(self.content_key(user_id, entity.id, entity.incarnation, version), stored.SerializeToString())

    async def _check_bindings(self, user_id: str, examined: Examined, bindings: Mapping[str, str]) -> None:
        names = checking.sub_recipe_names(examined.file.recipe)
        wrong = {f"sub_recipe_ids[{name!r}]": "is no sub-recipe of it" for name in bindings if name not in names}
        there = {one.entity.id for one in await self.entities.get_many(user_id, sorted(set(bindings.values())))}
        for name, recipe_id in bindings.items():
            if recipe_id not in there:
                wrong.setdefault(f"sub_recipe_ids[{name!r}]", f"there is no recipe {recipe_id!r}")
        if wrong:
            raise InvalidArgumentError(wrong)

    async def _names(self, key: str) -> tuple[document_pb2.NameEntry, Item | None]:
        item = await self._state.get(key)
        return (document_pb2.NameEntry.FromString(item.value) if item else document_pb2.NameEntry()), item

    async def _renaming(self, user_id: str, recipe_id: str, before: str, after: str) -> list[Put | Remove]:
        """Plan to enter a recipe under its name, and to take it from under the former one."""
        old, new = (self.name_key(user_id, one) if one else "" for one in (before, after))
        operations: list[Put | Remove] = []
        if old == new:
            return []
        if old:
            entry, item = await self._names(old)
            kept = [one for one in entry.recipe_ids if one != recipe_id]
            if item is not None and kept:
                value = document_pb2.NameEntry(recipe_ids=kept).SerializeToString()
                operations.append(Put(old, value, etag=item.etag))
            elif item is not None:
                operations.append(Remove(old, etag=item.etag))
        if new:
            entry, item = await self._names(new)
            if len(entry.recipe_ids) >= MAX_OF_ONE_NAME:
                raise InvalidArgumentError({"name": f"{MAX_OF_ONE_NAME} recipes have this name already"})
            entry.recipe_ids.append(recipe_id)
            operations.append(Put(new, entry.SerializeToString(), etag=item.etag if item else "", create=item is None))
        return operations


def describe(head: Head) -> recipe_pb2.Recipe:
    """Give a recipe as callers see it, without its definition."""
    recipe = recipe_pb2.Recipe()
    recipe.CopyFrom(head.recipe)
    recipe.id, recipe.etag = head.entity.id, str(head.entity.revision)
    recipe.create_time.CopyFrom(head.entity.create_time)
    recipe.update_time.CopyFrom(head.entity.update_time)
    return recipe


def _describe_content(recipe: recipe_pb2.Recipe, examined: Examined, bindings: Mapping[str, str]) -> None:
    recipe.title = examined.title
    recipe.description = str(examined.file.recipe["description"])
    del recipe.warnings[:]
    recipe.warnings.extend(examined.warnings(bindings))


def _cut(name: str) -> str:
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def _answer(head: Head) -> bytes:
    entity = head.entity
    return document_pb2.RecipeAnswer(
        recipe_id=entity.id,
        revision=entity.revision,
        version=head.recipe.version,
        create_time=entity.create_time,
        update_time=entity.update_time,
    ).SerializeToString()


def _changes(before: Head, after: Head) -> list[str]:
    changed = []
    if before.recipe.name != after.recipe.name:
        changed.append("name")
    if before.recipe.category != after.recipe.category:
        changed.append("category")
    if list(before.recipe.tags) != list(after.recipe.tags):
        changed.append("tags")
    if before.recipe.version != after.recipe.version:
        changed.append("definition")
    if dict(before.sub_recipe_ids) != dict(after.sub_recipe_ids):
        changed.append("sub_recipes")
    return changed


def _changed_event(head: Head, changed: Sequence[str] = ()) -> dict[str, Any]:
    recipe = head.recipe
    return json_format.MessageToDict(
        event_pb2.RecipeChangedEvent(
            name=recipe.name,
            title=recipe.title,
            description=recipe.description,
            category=recipe.category,
            tags=recipe.tags,
            version=recipe.version,
            changed=changed,
        )
    )


def _check_etag(head: Head, etag: str) -> None:
    current = str(head.entity.revision)
    if etag and etag != current:
        raise ConflictError(
            "the recipe has changed since that etag",
            reason=error_reason_pb2.ERROR_REASON_STALE_ETAG,
            metadata={"etag": etag, "current": current},
        )
