"""docs/settings.md against the settings themselves."""

import importlib
import inspect
import re
from typing import Any

import pytest

from cli.mesh.data import PROJECT_ROOT
from services.runtime.settings import ServiceSettings

_PAGE = (PROJECT_ROOT / "docs" / "settings.md").read_text()
_EVERY = "Every service"
# The page says of these what they amount to, and not how they are written.
_IN_WORDS = {"model_endpoints", "bulk_max_messages", "peer_address", "acting_commands", "entity_services", "http_port"}


def _documented() -> list[Any]:
    """Section, name and default of each setting on the page."""
    found = []
    for section in _PAGE.split("\n## ")[1:]:
        title = section.split("\n", 1)[0]
        for names, defaults in re.findall(r"^\| (`GAGGLE_.*?) \| (.*?) \|", section, re.MULTILINE):
            fields = [one.lower() for one in re.findall(r"GAGGLE_([A-Z_]+)", names)]
            values = defaults.split(", ") if len(fields) > 1 and ", " in defaults else [defaults] * len(fields)
            found += [
                pytest.param(title, field, value, id=f"{title}-{field}")
                for field, value in zip(fields, values, strict=True)
            ]
    return found


def _settings_of(title: str) -> list[type[ServiceSettings]]:
    if title == _EVERY:
        return [ServiceSettings, *_settings_of("audit")]
    module = importlib.import_module(f"services.{title}.settings")
    return [one for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, ServiceSettings)]


@pytest.mark.parametrize(("title", "field", "default"), _documented())
def test_a_documented_setting_is_there_with_its_default(title: str, field: str, default: str) -> None:
    """Whoever sets what the page names changes something, and whoever does not has what it says."""
    fields = [one.model_fields[field] for one in _settings_of(title) if field in one.model_fields]
    assert fields, f"{title} has no {field}"
    if field not in _IN_WORDS:
        assert _written(default) in {_written(_given(one)) for one in fields}


def _given(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not None else field.default


def _written(value: Any) -> str:
    """A default as the page writes it, or as code does, made comparable."""
    if value in (None, "", "none", "{}", "[]") or (isinstance(value, (tuple, list, dict, frozenset)) and not value):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(getattr(value, "value", value))
    return text if re.fullmatch(r"[\d.]+", text) is None else str(float(text))
