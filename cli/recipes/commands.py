"""The commands of `gaggle recipes`."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.calling import (
    AddressOption,
    AppIdOption,
    JsonOption,
    TimeoutOption,
    TokenOption,
    UserOption,
    ViaOption,
    connected,
    make_console,
)
from cli.mesh_commands import DataOption

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from cli.recipes.client import RecipeClient
    from gaggle.recipe.v1.execution_pb2 import Execution
    from gaggle.recipe.v1.recipe_pb2 import Recipe

_SHOWN = 100

app = typer.Typer(
    help="Import goose's recipes, run them, and give them back as files.",
    epilog="Exit codes: 0 done; 1 the service refused or the run failed, and stderr says why; 2 wrong usage or a file "
    "that can't be read; 3 no mesh answers.",
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The recipe's name, whatever its case, or its id.")]


@app.command(
    "import",
    epilog="Examples: gaggle recipes import release.yaml; gaggle recipes import --category data recipes/*.yaml",
)
def import_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recipes in YAML or JSON.")],
    *,
    name: Annotated[str, typer.Option(help="Of a single file. Default: what it says.")] = "",
    category: Annotated[str, typer.Option(help="For all of them.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="For all of them; may be said again.")] = None,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Import recipe files, with the sub-recipes beside them; one of a name that is known becomes its next version."""
    from cli.conversations.errors import ServiceRefusedError
    from cli.errors import CommandError
    from cli.recipes.bundles import gather

    if name and len(files) != 1:
        raise typer.BadParameter("is for a single file", param_hint="--name")
    sources = gather(files)

    async def run() -> None:
        ids: dict[Path, str] = {}
        async with _recipes(user, timeout, data, address, via, app_id, token) as recipes:
            for source in sources:
                bindings = {part: ids[path] for part, path in source.parts.items()}
                wanted = name if name and source.path in files else source.title
                try:
                    recipe, what = await recipes.take(
                        source.content, name=wanted, category=category, tags=tag or [], bindings=bindings
                    )
                except ServiceRefusedError as error:
                    raise CommandError(f"{source.path}: {_told(error)}") from error
                ids[source.path.resolve()] = recipe.id
                if as_json:
                    _print_json(recipe)
                else:
                    typer.echo(f"{recipe.id}  {what}  {recipe.name}")
                for warning in recipe.warnings:
                    place = f":{warning.line}:{warning.column}" if warning.line else ""
                    typer.echo(f"{source.path}{place}: {warning.message}", err=True)

    asyncio.run(run())


@app.command("list", epilog="Examples: gaggle recipes list; gaggle recipes list --category data --tag weekly report")
def list_recipes(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD]...", help="Those alone that hold these.")] = None,
    *,
    category: Annotated[str, typer.Option(help="Those alone of this category.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Those alone with this tag; may be said again.")] = None,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List your recipes, newest first."""
    from gaggle.recipe.v1 import recipe_service_pb2 as pb

    request = pb.ListRecipesRequest(page_size=_SHOWN, category=category, tags=tag or [], text=" ".join(words or []))

    async def run() -> None:
        async with _recipes(user, timeout, data, address, via, app_id, token) as recipes:
            found = [one async for one in recipes.all(request)]
        if as_json:
            for one in found:
                _print_json(one)
        else:
            _print_recipes(found)

    asyncio.run(run())


@app.command(epilog="Example: gaggle recipes show 'Release Notes'")
def show(
    name: NameArgument,
    *,
    version: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Show what a recipe is, wants and does."""

    async def run() -> None:
        async with _recipes(user, timeout, data, address, via, app_id, token) as recipes:
            recipe = await recipes.find(name)
            if version is not None:
                recipe = await recipes.get(recipe.id, version)
        _print_json(recipe) if as_json else _print_recipe(recipe)

    asyncio.run(run())


@app.command(
    epilog="Examples: gaggle recipes export 'Release Notes' > notes.yaml; gaggle recipes export x --format json"
)
def export(
    name: NameArgument,
    *,
    format_name: Annotated[str, typer.Option("--format", help="yaml or json. Default: as it came.")] = "",
    version: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file, or a folder. Default: stdout.")] = None,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Give a recipe as a file."""
    from gaggle.recipe.v1 import recipe_pb2
    from gaggle.recipe.v1 import recipe_service_pb2 as pb

    formats = {"": 0, "yaml": recipe_pb2.RECIPE_FORMAT_YAML, "json": recipe_pb2.RECIPE_FORMAT_JSON}
    if format_name not in formats:
        raise typer.BadParameter("is yaml or json", param_hint="--format")

    async def run() -> pb.ExportRecipeResponse:
        async with _recipes(user, timeout, data, address, via, app_id, token) as recipes:
            recipe = await recipes.find(name)
            request = pb.ExportRecipeRequest(recipe_id=recipe.id, version=version)
            request.format = formats[format_name]  # type: ignore[assignment]  # an int is as good
            return await recipes.export(request)

    exported = asyncio.run(run())
    if output is None:
        typer.echo(exported.content, nl=False)
        return
    target = output / exported.file_name if output.is_dir() else output
    target.write_text(exported.content, encoding="utf-8")
    typer.echo(str(target))


@app.command(
    epilog="Examples: gaggle recipes run 'Release Notes' from_tag=v1 to_tag=v2; "
    "gaggle recipes run pipeline data_file=data.csv notes=@notes.txt --detach"
)
def run(
    name: NameArgument,
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Parameters; @FILE stands for a file's text."),
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Default: the recipe's, else the deployment's.")] = "",
    parallel: Annotated[bool, typer.Option("--parallel", help="Run the sub-recipes all at once.")] = False,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Run without the checks of its retry.")] = False,
    version: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the execution's id and leave.")] = False,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Run a recipe, and watch it."""
    from gaggle.recipe.v1 import execution_service_pb2 as runs

    given = _parameters(parameters or [])
    request = runs.StartExecutionRequest(version=version)
    for key, text in given.items():
        request.parameters[key].string_value = text
    request.options.model = model
    request.options.parallel_sub_recipes = parallel
    request.options.skip_checks = skip_checks

    async def work() -> bool:
        async with _recipes(user, timeout, data, address, via, app_id, token) as recipes:
            request.recipe_id = (await recipes.find(name)).id
            execution_id = await recipes.start(request)
            if detach:
                typer.echo(execution_id)
                return True
            typer.echo(f"execution {execution_id}", err=True)
            return await _follow(recipes, execution_id, as_json=as_json)

    if not asyncio.run(work()):
        raise typer.Exit(1)


@app.command(epilog="Example: gaggle recipes watch 0199a1b2-...")
def watch(
    execution: Annotated[str, typer.Argument(metavar="EXECUTION", help="The id that `run` told.")],
    *,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Watch an execution to its end; leaving does not stop it."""

    async def work() -> bool:
        async with _recipes(user, timeout, data, address, via, app_id, token) as recipes:
            return await _follow(recipes, execution, as_json=as_json)

    if not asyncio.run(work()):
        raise typer.Exit(1)


async def _follow(recipes: "RecipeClient", execution_id: str, *, as_json: bool) -> bool:
    """Print each change of an execution; gives whether it was completed."""
    from gaggle.recipe.v1 import execution_pb2

    last: Execution | None = None
    told: dict[str, tuple[int, int]] = {}
    async for last in recipes.watch(execution_id):
        if as_json:
            _print_json(last)
            continue
        for step in last.steps:
            if step.status == execution_pb2.STEP_STATUS_PENDING or told.get(step.id) == (
                step.status,
                step.attempt_count,
            ):
                continue
            told[step.id] = (step.status, step.attempt_count)
            word = execution_pb2.StepStatus.Name(step.status).removeprefix("STEP_STATUS_").lower()
            depth = "  " * step.id.replace("try", "").count("/")
            again = f" (attempt {step.attempt_count})" if step.attempt_count > 1 else ""
            count = f"{last.completed_steps}/{last.total_steps}"
            typer.echo(f"{count:>7}  {depth}{step.name}: {word}{again}", err=True)
    if last is None:
        return False
    if last.status == execution_pb2.EXECUTION_STATUS_COMPLETED:
        if not as_json:
            typer.echo(last.result)
        return True
    word = execution_pb2.ExecutionStatus.Name(last.status).removeprefix("EXECUTION_STATUS_").lower()
    why = f": {last.error.message} ({last.error.reason})" if last.error.reason else ""
    typer.echo(f"gaggle: {word}{why}", err=True)
    return False


def _parameters(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{one!r} is not KEY=VALUE", param_hint="PARAMETERS")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise typer.BadParameter(f"{value[1:]} can't be read: {error}", param_hint=key) from error
        found[key] = value
    return found


def _told(error: Any) -> str:
    """Say what the service found wrong with a file, its place first."""
    violations = dict(error.failure.violations)
    return str(violations.get("content", error))


def _print_recipes(found: "list[Recipe]") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("id", "name", "version", "category", "tags", "", box=None, header_style="bold")
    for one in found:
        bound = "incomplete" if any(warning.sub_recipe for warning in one.warnings) else ""
        table.add_row(
            one.id, escape(one.name), str(one.version), escape(one.category), escape(", ".join(one.tags)), bound
        )
    make_console().print(table)


def _print_recipe(recipe: "Recipe") -> None:
    from gaggle.recipe.v1 import recipe_pb2

    console = make_console()
    definition = recipe.definition
    console.print(f"{recipe.name} (version {recipe.version}, {recipe.id})", style="bold", markup=False)
    console.print(definition.description, markup=False)
    if definition.parameters:
        console.print("\nparameters:", style="bold")
    for one in definition.parameters:
        kind = recipe_pb2.ParameterType.Name(one.input_type).removeprefix("PARAMETER_TYPE_").lower()
        default = f" = {json.loads(one.default_json.value)!r}" if one.HasField("default_json") else ""
        console.print(f"  {one.key}: {kind}{default}  {one.description}", markup=False)
    for title, names in (
        ("extensions", [f"{one.name} ({one.type})" for one in definition.extensions]),
        ("sub-recipes", [f"{one.name}: {one.recipe_id or 'not bound'}" for one in definition.sub_recipes]),
        ("steps", [f"{one.name} ({one.WhichOneof('action')})" for one in definition.steps]),
        ("warnings", [one.message for one in recipe.warnings]),
    ):
        if names:
            console.print(f"\n{title}:", style="bold")
        for text in names:
            console.print(f"  {text}", markup=False)
    if definition.prompt:
        console.print("\nprompt:", style="bold")
        console.print(definition.prompt, markup=False)


@asynccontextmanager
async def _recipes(
    user: str, seconds: float, data: Path | None, address: str, via: str, app_id: str, token: str
) -> "AsyncIterator[RecipeClient]":
    from cli.recipes.client import SERVICE, RecipeClient

    async with connected(user, seconds, data, address, via, app_id, token, service=SERVICE) as client:
        yield RecipeClient(client, patience_seconds=seconds)


def _print_json(message: "Message") -> None:
    from google.protobuf import json_format

    typer.echo(json_format.MessageToJson(message, indent=None))
