"""Templates: what they may do, and what the sandbox keeps them from."""

import time

import pytest

from services.recipe import templates
from services.recipe.templates import TemplateFaultError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {{ who }}!", "Hello Ann!"),
        ("{% if who == 'Ann' %}yes{% else %}no{% endif %}", "yes"),
        ("{{ lines | indent(2) }}", "one\n  two"),
        ("{{ who | upper }}, {{ who.lower() }}", "ANN, ann"),
        ("{{two words}} and {{ who }}", "{{two words}} and Ann"),
        ("{% for n in range(3) %}{{ n }}{% endfor %}", "012"),
        ("{{ 'a' ~ who }}", "aAnn"),
        ("no template at all", "no template at all"),
    ],
)
def test_fills_in(text: str, expected: str) -> None:
    """Recipes' templates are filled in, and brace pairs that hold no expression stay."""
    assert templates.render(text, {"who": "Ann", "lines": "one\ntwo"}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ who.__init__.__globals__ }}",
        "{{ lipsum }}",
        "{{ cycler.__init__ }}",
        "{% include 'x' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 9 ** 64 ** 64 ** 64 }}",
        "{% set a = 9 %}" + "{% set a = a * a %}" * 40 + "{{ a }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>9999999}'.format(1) }}",
        "{{ 'x' | center(999999999) }}",
        "{% set a = 'x' * 1000 %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
        "{% set a = 'x' * 1000 %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
        "{% set a = 'x' * 1000 %}" + "{% set a = a | replace('x', a) %}" * 5 + "{{ a }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ range(10**12) | list }}",
        "{% for a in range(9999) %}" + "x" * 100 + "{% endfor %}",
        "{{ missing }}",
        "{{ missing.part }}",
    ],
)
def test_is_kept_in(text: str) -> None:
    """A template gets at nothing outside, and can't use up time or memory; a name without value is a fault."""
    started = time.monotonic()
    with pytest.raises(TemplateFaultError):
        templates.render(text, {"who": "Ann"})
    assert time.monotonic() - started < 5


def test_names_what_it_needs() -> None:
    """The variables of a text are those it does not set itself, built-in names left out."""
    text = "{{ a }} {% set b = 1 %}{{ b }} {{ steps.x.result }} {{ recipe_dir }} {{no name}}"
    text += "{% for c in d %}{{ c }}{% endfor %}"
    assert templates.variables(text) == {"a", "d"}
