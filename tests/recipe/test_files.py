"""Recipe files: what is read, what is refused and where, what comes out again."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.recipe import checking, definitions, files
from services.recipe.files import Format, RecipeFileError
from tests.recipe.corpus import REAL, SAMPLES, needs_real, real, sample

_HEAD = "title: T\ndescription: D\n"


def _notices(content: str) -> list[str]:
    return [one.message for one in checking.check(files.read(content))]


def _fault(content: str, wanted: Format | None = None) -> tuple[int, int, str]:
    with pytest.raises(RecipeFileError) as raised:
        checking.check(files.read(content, wanted))
    return raised.value.line, raised.value.column, str(raised.value)


@pytest.mark.parametrize("name", ["release-notes.yaml", "pipeline.yaml", "subrecipes/checker.yaml", "wrapped.json"])
def test_both_formats_and_the_message_say_the_same(name: str) -> None:
    """A file written in either format, or made of its message, is equal in meaning to the one that was read."""
    read = files.read(sample(name))
    checking.check(read)
    for kind in Format:
        assert files.read(files.write(read.document, kind), kind).document == read.document
    again = definitions.to_document(definitions.to_message(read.recipe))
    assert again == {"version": "1.0.0", **read.recipe}


@needs_real
@pytest.mark.parametrize(
    "name",
    [
        "analyze-pr.yaml",
        "change-log.yaml",
        "data-analysis-pipeline.yaml",
        "subrecipes/chart-generator.yaml",
        "subrecipes/data-cleaner.yaml",
        "subrecipes/statistical-analyzer.yaml",
    ],
)
def test_real_recipes_go_in_and_come_out(name: str) -> None:
    """Every real recipe that is valid is read, and comes out of both formats and of its message equal in meaning."""
    read = files.read(real(name))
    checking.check(read)
    for kind in Format:
        assert files.read(files.write(read.document, kind), kind).document == read.document
    assert definitions.to_document(definitions.to_message(read.recipe)) == read.recipe


@needs_real
@pytest.mark.parametrize(
    ("name", "line", "column"), [("quick-note.yaml", 17, 35), ("smart-task-organizer.yaml", 39, 11)]
)
def test_real_files_that_are_broken_are_refused_where_they_break(name: str, line: int, column: int) -> None:
    """A real file that does not parse is refused with the line and column of what is wrong."""
    assert (REAL / name).is_file()
    assert _fault(real(name))[:2] == (line, column)


@pytest.mark.parametrize(
    ("content", "line", "column", "says"),
    [
        pytest.param(sample("broken-colon.yaml"), 3, 26, "mapping values", id="a colon in a plain text"),
        pytest.param(sample("broken-quote.yaml"), 8, 11, "while parsing a flow sequence", id="a quote never closed"),
        pytest.param("", 1, 1, "empty", id="nothing"),
        pytest.param("# only a comment\n", 1, 1, "empty", id="a comment alone"),
        pytest.param("- a\n- b\n", 1, 1, "mapping", id="a list"),
        pytest.param("title: a\ntitle: b\n", 2, 1, "twice", id="a key twice"),
        pytest.param("title: !!python/object:os.system x\n", 1, 8, "tag", id="a tag of Python's"),
        pytest.param("title: a\nx: \x01\n", 2, 4, "character", id="a control character"),
        pytest.param("title: T\nprompt: P\n", 1, 1, "`description` is missing", id="no description"),
        pytest.param("title: 7\ndescription: D\nprompt: P\n", 1, 8, "must be a string", id="a number for a title"),
        pytest.param(_HEAD, 1, 1, "at least one of", id="nothing to do"),
        pytest.param(_HEAD + "prompt: ''\n", 1, 1, "at least one of", id="an empty prompt"),
        pytest.param(_HEAD + "prompt: P\nactivities: all\n", 4, 13, "must be a list", id="activities"),
        pytest.param(_HEAD + "prompt: P {{ who }}\n", 3, 14, "'who'", id="a variable that is not declared"),
        pytest.param(_HEAD + "prompt: |\n  a\n  {% if %}\n", 5, 3, "template", id="a template that does not parse"),
        pytest.param(_HEAD + "prompt: '{% include \"x\" %}'\n", 3, 10, "other files", id="another file brought in"),
        pytest.param(
            _HEAD + "prompt: '{{ a }}'\nparameters:\n- {key: a, input_type: strong, requirement: required, "
            "description: d}\n",
            5,
            24,
            "'strong' is not one of",
            id="a type that is none",
        ),
        pytest.param(
            _HEAD + "prompt: '{{ a }}'\nparameters:\n- {key: a, input_type: string, requirement: optional, "
            "description: d}\n",
            5,
            3,
            "needs a default",
            id="an optional parameter without default",
        ),
        pytest.param(
            _HEAD + "prompt: '{{ a }}'\nparameters:\n- {key: a, input_type: file, requirement: required, "
            "description: d, default: /etc/passwd}\n",
            5,
            78,
            "no default",
            id="a file with a default",
        ),
        pytest.param(
            _HEAD + "prompt: P\nextensions:\n- {type: sse, name: n, uri: u}\n", 5, 10, "streamable_http", id="sse"
        ),
        pytest.param(
            _HEAD + "prompt: P\nextensions:\n- {type: command, name: n}\n",
            5,
            10,
            "'command'",
            id="an unknown extension",
        ),
        pytest.param(_HEAD + "prompt: P\nretry: {max_retries: 0}\n", 4, 22, "from 1", id="no retries"),
        pytest.param(
            _HEAD + "prompt: P\nresponse:\n  json_schema: {type: objekt}\n", 5, 23, "no JSON schema", id="a schema"
        ),
        pytest.param(
            _HEAD + "prompt: P\nresponse:\n  json_schema: {$ref: 'http://h/s'}\n", 5, 16, "within", id="a far schema"
        ),
        pytest.param(
            _HEAD + "steps:\n- {name: a, sub_recipe: {name: b}}\n", 4, 32, "not in sub_recipes", id="an unknown step"
        ),
        pytest.param(_HEAD + "steps:\n- {name: a, prompt: p, tool: {}}\n", 4, 3, "exactly one", id="two actions"),
        pytest.param('{"title": "T",\n "description": }', 2, 17, "Expecting value", id="JSON that ends early"),
        pytest.param('{\n\t"title": "T",\n\t"description": 5}', 3, 17, "must be a string", id="JSON by its tabs"),
    ],
)
def test_faults_are_told_with_their_place(content: str, line: int, column: int, says: str) -> None:
    """What is wrong with a file is told with line and column."""
    told = _fault(content)
    assert told[:2] == (line, column), told
    assert says in told[2]


def test_scalars_are_those_of_yaml_1_2() -> None:
    """Words and dates that YAML 1.1 took for other things are read as text, as goose reads them."""
    read = files.read("a: yes\nb: 2025-01-31\nc: 010\nd: 1_000\ne: true\nf: ~\ng: 1e3\nh: 0x1F\n").document
    assert read == {"a": "yes", "b": "2025-01-31", "c": 10, "d": "1_000", "e": True, "f": None, "g": 1000.0, "h": 31}


def test_aliases_do_not_explode() -> None:
    """A few lines of aliases that stand for billions of values are refused, quickly."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(RecipeFileError, match="more than"):
        files.read("\n".join(lines))


@pytest.mark.parametrize("content", ["[" * 5000, "a: " + "{b: " * 3000, '{"a":' * 3000])
def test_depth_is_bounded(content: str) -> None:
    """Nesting without end is refused, not a fault of ours."""
    with pytest.raises(RecipeFileError):
        files.read(content)


def test_what_does_not_hinder_is_noticed() -> None:
    """Extensions that only goose runs, and parameters that nothing uses, are warnings with their place."""
    notices = checking.check(
        files.read(sample("release-notes.yaml") + "extensions:\n- {type: builtin, name: developer}\n")
    )
    assert [(one.message, one.line) for one in notices] == [
        ("the extension 'developer' is of type builtin, which runs inside goose alone", 41)
    ]
    assert _notices(
        _HEAD + "prompt: P\nparameters:\n- {key: a, input_type: string, requirement: required, description: d}\n"
    ) == ["the parameter 'a' is used by no template"]


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(st.characters(exclude_categories=["C"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc-", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("xyz_", min_size=1, max_size=6), _json, min_size=1, max_size=4))
@example(
    {"_": ["0E0", "1e3", "0o7", "0x1F", ".5", "-.inf", ".NaN", "~", "", "null", "True", "yes", "=", "1_000", "12:30"]}
)
def test_any_document_survives_both_formats(document: dict[str, object]) -> None:
    """Whatever unknown fields hold comes out of YAML and JSON as it went in."""
    for kind in Format:
        assert files.read(files.write(document, kind), kind).document == document


def test_samples_are_all_used() -> None:
    """No sample lies about unread."""
    assert {one.name for one in SAMPLES.rglob("*.*")} == {
        "broken-colon.yaml", "broken-quote.yaml", "checker.yaml", "pipeline.yaml", "release-notes.yaml", "wrapped.json",
    }  # fmt: skip
