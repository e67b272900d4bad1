"""A recipe's document and its message: the same in two spellings, neither losing what it does not know."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gaggle.recipe.v1 import recipe_pb2
from services.recipe.checking import INPUT_TYPES, REQUIREMENTS

_KNOWN = frozenset(
    {
        "version", "title", "description", "instructions", "prompt", "extensions", "settings", "activities", "author",
        "parameters", "response", "sub_recipes", "retry", "steps",
    }
)  # fmt: skip
_SETTINGS = ("goose_provider", "goose_model", "temperature", "max_turns")
_RETRY_TIMES = ("timeout_seconds", "on_failure", "on_failure_timeout_seconds")


def to_message(recipe: Mapping[str, Any]) -> recipe_pb2.RecipeDefinition:
    """Spell a checked document as a message."""
    message = recipe_pb2.RecipeDefinition(
        version=recipe.get("version") or "1.0.0",
        title=recipe["title"],
        description=recipe["description"],
        instructions=recipe.get("instructions") or "",
        prompt=recipe.get("prompt") or "",
        activities=recipe.get("activities") or (),
        extensions=[_extension(one) for one in recipe.get("extensions") or ()],
        parameters=[_parameter(one) for one in recipe.get("parameters") or ()],
        sub_recipes=[_sub_recipe(one) for one in recipe.get("sub_recipes") or ()],
        steps=[_step(one) for one in recipe.get("steps") or ()],
        extra_json=_extra(recipe, _KNOWN),
    )
    if (settings := recipe.get("settings")) is not None:
        message.settings.SetInParent()
        for key in _SETTINGS:
            if settings.get(key) is not None:
                setattr(message.settings, key, settings[key])
        message.settings.extra_json = _extra(settings, _SETTINGS)
    if (author := recipe.get("author")) is not None:
        message.author.contact = author.get("contact") or ""
        message.author.metadata = author.get("metadata") or ""
        message.author.extra_json = _extra(author, ("contact", "metadata"))
    if (response := recipe.get("response")) is not None:
        schema = response.get("json_schema")
        message.response.json_schema = "" if schema is None else _json(schema)
        message.response.extra_json = _extra(response, ("json_schema",))
    if recipe.get("retry"):
        _retry(message.retry, recipe["retry"])
    return message


def to_document(message: recipe_pb2.RecipeDefinition) -> dict[str, Any]:
    """Spell a message as a document. Raises ValueError where one of its JSON fields is none, by name."""
    document: dict[str, Any] = {
        "version": message.version or "1.0.0",
        "title": message.title,
        "description": message.description,
        "instructions": message.instructions or None,
        "prompt": message.prompt or None,
        "author": None,
        "settings": None,
        "activities": list(message.activities) or None,
        "parameters": [_from_parameter(n, one) for n, one in enumerate(message.parameters)] or None,
        "extensions": [_from_extension(n, one) for n, one in enumerate(message.extensions)] or None,
        "sub_recipes": [_from_sub_recipe(n, one) for n, one in enumerate(message.sub_recipes)] or None,
        "steps": [_from_step(f"steps[{n}]", one) for n, one in enumerate(message.steps)] or None,
    }
    if message.HasField("author"):
        author = message.author
        document["author"] = _lean({"contact": author.contact or None, "metadata": author.metadata or None})
        document["author"] |= _object("author.extra_json", author.extra_json)
    if message.HasField("settings"):
        settings = message.settings
        document["settings"] = _lean(
            {
                "goose_provider": settings.goose_provider or None,
                "goose_model": settings.goose_model or None,
                "temperature": settings.temperature if settings.HasField("temperature") else None,
                "max_turns": settings.max_turns if settings.HasField("max_turns") else None,
            }
        ) | _object("settings.extra_json", settings.extra_json)
    if message.HasField("response"):
        schema = _object("response.json_schema", message.response.json_schema)
        document["response"] = {"json_schema": schema} if message.response.json_schema else {}
        document["response"] |= _object("response.extra_json", message.response.extra_json)
    if message.HasField("retry"):
        document["retry"] = _from_retry(message.retry)
    return _lean(document) | _object("extra_json", message.extra_json)


# -- document to message


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _extra(entry: Mapping[str, Any], known: Sequence[str] | frozenset[str]) -> str:
    rest = {key: value for key, value in entry.items() if key not in known}
    return _json(rest) if rest else ""


def _extension(one: Mapping[str, Any]) -> recipe_pb2.RecipeExtension:
    known = ("type", "name", "description")
    return recipe_pb2.RecipeExtension(
        type=one["type"], name=one["name"], description=one.get("description") or "", config_json=_extra(one, known)
    )


def _parameter(one: Mapping[str, Any]) -> recipe_pb2.Parameter:
    message = recipe_pb2.Parameter(
        key=one["key"],
        input_type=recipe_pb2.ParameterType.Value(f"PARAMETER_TYPE_{one['input_type'].upper()}"),
        requirement=recipe_pb2.Requirement.Value(f"REQUIREMENT_{one['requirement'].upper()}"),
        description=one["description"],
        options=one.get("options") or (),
        extra_json=_extra(one, ("key", "input_type", "requirement", "description", "default", "options")),
    )
    if one.get("default") is not None:
        message.default_json.value = _json(one["default"])
    return message


def _plain(values: Mapping[str, Any] | None) -> dict[str, str]:
    """Values as strings, as goose takes them."""
    return {key: one if isinstance(one, str) else _json(one) for key, one in (values or {}).items()}


def _sub_recipe(one: Mapping[str, Any]) -> recipe_pb2.SubRecipe:
    return recipe_pb2.SubRecipe(
        name=one["name"],
        path=one["path"],
        values=_plain(one.get("values")),
        sequential_when_repeated=bool(one.get("sequential_when_repeated")),
        description=one.get("description") or "",
        extra_json=_extra(one, ("name", "path", "values", "sequential_when_repeated", "description")),
    )


def _retry(message: recipe_pb2.Retry, retry: Mapping[str, Any]) -> None:
    message.max_retries = retry["max_retries"]
    for one in retry.get("checks") or ():
        message.checks.add(type=one["type"], command=one["command"])
    for key in _RETRY_TIMES:
        if retry.get(key) is not None:
            setattr(message, key, retry[key])
    message.extra_json = _extra(retry, ("max_retries", "checks", *_RETRY_TIMES))


def _step(one: Mapping[str, Any]) -> recipe_pb2.Step:
    step = recipe_pb2.Step(
        name=one["name"], extra_json=_extra(one, ("name", "prompt", "tool", "sub_recipe", "parallel"))
    )
    if one.get("prompt") is not None:
        step.prompt = one["prompt"]
    elif (tool := one.get("tool")) is not None:
        step.tool.extension, step.tool.tool = tool["extension"], tool["tool"]
        step.tool.arguments_json = _json(tool.get("arguments") or {})
    elif (named := one.get("sub_recipe")) is not None:
        step.sub_recipe.name = named["name"]
        step.sub_recipe.values.update(_plain(named.get("values")))
    else:
        step.parallel.steps.extend(_step(inner) for inner in one["parallel"])
    return step


# -- message to document


def _lean(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _value(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{field}: must be JSON") from None


def _object(field: str, text: str) -> dict[str, Any]:
    value = _value(field, text) if text else {}
    if not isinstance(value, dict):
        raise ValueError(f"{field}: must be a JSON object")  # noqa: TRY004 - the one error of bad JSON fields
    return value


def _from_extension(index: int, one: recipe_pb2.RecipeExtension) -> dict[str, Any]:
    own = {"type": one.type, "name": one.name, "description": one.description or None}
    return _lean(own) | _object(f"extensions[{index}].config_json", one.config_json)


def _from_parameter(index: int, one: recipe_pb2.Parameter) -> dict[str, Any]:
    field = f"parameters[{index}]"
    default = _value(f"{field}.default_json", one.default_json.value) if one.HasField("default_json") else None
    own = {
        "key": one.key,
        "input_type": _word(INPUT_TYPES, one.input_type),
        "requirement": _word(REQUIREMENTS, one.requirement),
        "description": one.description,
        "default": default,
        "options": list(one.options) or None,
    }
    return _lean(own) | _object(f"{field}.extra_json", one.extra_json)


def _word(words: Sequence[str], number: int) -> str | None:
    return words[number - 1] if 0 < number <= len(words) else None


def _from_sub_recipe(index: int, one: recipe_pb2.SubRecipe) -> dict[str, Any]:
    own = {
        "name": one.name,
        "path": one.path,
        "values": dict(one.values) or None,
        "sequential_when_repeated": one.sequential_when_repeated or None,
        "description": one.description or None,
    }
    return _lean(own) | _object(f"sub_recipes[{index}].extra_json", one.extra_json)


def _from_retry(retry: recipe_pb2.Retry) -> dict[str, Any]:
    own = {
        "max_retries": retry.max_retries,
        "checks": [{"type": one.type, "command": one.command} for one in retry.checks],
        "timeout_seconds": retry.timeout_seconds if retry.HasField("timeout_seconds") else None,
        "on_failure": retry.on_failure if retry.HasField("on_failure") else None,
        "on_failure_timeout_seconds": (
            retry.on_failure_timeout_seconds if retry.HasField("on_failure_timeout_seconds") else None
        ),
    }
    return _lean(own) | _object("retry.extra_json", retry.extra_json)


def _from_step(field: str, one: recipe_pb2.Step) -> dict[str, Any]:
    step: dict[str, Any] = {"name": one.name}
    action = one.WhichOneof("action")
    if action == "prompt":
        step["prompt"] = one.prompt
    elif action == "tool":
        step["tool"] = {"extension": one.tool.extension, "tool": one.tool.tool}
        if arguments := _object(f"{field}.tool.arguments_json", one.tool.arguments_json):
            step["tool"]["arguments"] = arguments
    elif action == "sub_recipe":
        step["sub_recipe"] = {"name": one.sub_recipe.name}
        if one.sub_recipe.values:
            step["sub_recipe"]["values"] = dict(one.sub_recipe.values)
    elif action == "parallel":
        steps = enumerate(one.parallel.steps)
        step["parallel"] = [_from_step(f"{field}.parallel.steps[{n}]", inner) for n, inner in steps]
    return step | _object(f"{field}.extra_json", one.extra_json)
