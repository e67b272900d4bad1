"""Writes json/TOPIC.schema.json and avro/TOPIC.avsc below a folder: `python -m schemas FOLDER`.

Both describe the JSON that is the `data` of the CloudEvent, field by field as it is spelt on the wire: proto3 JSON,
where 64-bit numbers are strings. Descriptions are the contracts' comments. Avro has no type for "any JSON", so topics
without a typed payload have a JSON Schema alone.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2 as pb

from schemas.topics import PAYLOADS
from services.runtime.topics import ALL_TOPICS, SNAKE_CASE_TOPICS

_EVENT = "gaggle.common.v1.Event"
_ALWAYS = ("event_id", "event_type", "entity_type", "entity_id", "user_id", "timestamp", "data")
_Field = pb.FieldDescriptorProto
_64_BITS = {_Field.TYPE_INT64, _Field.TYPE_UINT64, _Field.TYPE_SINT64, _Field.TYPE_FIXED64, _Field.TYPE_SFIXED64}
_32_BITS = {_Field.TYPE_INT32, _Field.TYPE_UINT32, _Field.TYPE_SINT32, _Field.TYPE_FIXED32, _Field.TYPE_SFIXED32}
_FLOATS = {_Field.TYPE_DOUBLE, _Field.TYPE_FLOAT}

Json = dict[str, Any]


class Contracts:
    """The messages and enums of protos/, with their comments."""

    def __init__(self, image: pb.FileDescriptorSet) -> None:
        """`image` has source info: `buf build` keeps it."""
        self.messages: dict[str, pb.DescriptorProto] = {}
        self.enums: dict[str, pb.EnumDescriptorProto] = {}
        self.files: dict[str, str] = {}
        """The name of the file that has a message."""

        self._comments: dict[str, str] = {}
        for file in image.file:
            said = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}
            for index, enum in enumerate(file.enum_type):
                self.enums[f"{file.package}.{enum.name}"] = enum
                self._comments[f"{file.package}.{enum.name}"] = said.get((5, index), "")
            for index, message in enumerate(file.message_type):
                self._add(file.package, message, (4, index), said)
                self.files[f"{file.package}.{message.name}"] = Path(file.name).name

    def _add(self, package: str, message: pb.DescriptorProto, path: tuple[int, ...], said: dict[Any, str]) -> None:
        name = f"{package}.{message.name}"
        self.messages[name] = message
        self._comments[name] = said.get(path, "")
        for number, field in enumerate(message.field):
            self._comments[f"{name}.{field.name}"] = said.get((*path, 2, number), "")
        for number, nested in enumerate(message.nested_type):
            self._add(name, nested, (*path, 3, number), said)

    def comment(self, name: str) -> Json:
        """The description of a message or a field, if it has one."""
        text = " ".join(self._comments.get(name, "").split())
        return {"description": text} if text else {}

    def map_value(self, field: pb.FieldDescriptorProto) -> pb.FieldDescriptorProto | None:
        """The value of a map field; None if the field is none."""
        message = self.messages.get(_type_name(field)) if field.type == _Field.TYPE_MESSAGE else None
        if message is None or not message.options.map_entry:
            return None
        return message.field[1]


def _type_name(field: pb.FieldDescriptorProto) -> str:
    return field.type_name.removeprefix(".")


def _is_list(field: pb.FieldDescriptorProto) -> bool:
    return bool(field.label == _Field.LABEL_REPEATED)


class JsonSchemas:
    """JSON Schema 2020-12."""

    def __init__(self, contracts: Contracts) -> None:
        """`contracts` are what is described."""
        self._contracts = contracts

    def topic(self, topic: str) -> Json:
        """Describe a topic's events."""
        definitions: Json = {}
        spelt = _spelling(topic)
        schema = self._message(_EVENT, spelt, definitions)
        if payloads := PAYLOADS.get(topic):
            references: list[Json] = [{"$ref": self._define(one, spelt, definitions)} for one in payloads]
            schema["properties"]["data"] = references[0] if len(references) == 1 else {"anyOf": references}
        head: Json = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": topic}
        required: Json = {"required": [spelt(name) for name in _ALWAYS]}
        return head | schema | required | ({"$defs": definitions} if definitions else {})

    def _message(self, name: str, spelt: "Spelling", definitions: Json) -> Json:
        fields = self._contracts.messages[name].field
        properties = {
            spelt(one.name): self._field(one, spelt, definitions) | self._contracts.comment(f"{name}.{one.name}")
            for one in fields
        }
        return {**self._contracts.comment(name), "type": "object", "properties": properties}

    def _define(self, name: str, spelt: "Spelling", definitions: Json) -> str:
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = self._message(name, spelt, definitions)
        return f"#/$defs/{name}"

    def _field(self, field: pb.FieldDescriptorProto, spelt: "Spelling", definitions: Json) -> Json:
        if (value := self._contracts.map_value(field)) is not None:
            return {"type": "object", "additionalProperties": self._one(value, spelt, definitions)}
        one = self._one(field, spelt, definitions)
        return {"type": "array", "items": one} if _is_list(field) else one

    def _one(self, field: pb.FieldDescriptorProto, spelt: "Spelling", definitions: Json) -> Json:  # noqa: PLR0911 - a table
        if field.type in _64_BITS:
            return {"type": "string", "pattern": "^-?[0-9]+$"}
        if field.type in _32_BITS:
            return {"type": "integer"}
        if field.type in _FLOATS:
            return {"type": "number"}
        if field.type == _Field.TYPE_BOOL:
            return {"type": "boolean"}
        if field.type == _Field.TYPE_ENUM:
            return {"type": "string", "enum": [one.name for one in self._contracts.enums[_type_name(field)].value]}
        if field.type != _Field.TYPE_MESSAGE:
            return {"type": "string"} | ({"contentEncoding": "base64"} if field.type == _Field.TYPE_BYTES else {})
        match _type_name(field):
            case "google.protobuf.Timestamp":
                return {"type": "string", "format": "date-time"}
            case "google.protobuf.Duration":
                return {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"}
            case "google.protobuf.Struct":
                return {"type": "object"}
            case name:
                return {"$ref": self._define(name, spelt, definitions)}


class AvroSchemas:
    """Avro 1.11. Every field has a default, so that what proto3 JSON leaves out can be read."""

    def __init__(self, contracts: Contracts) -> None:
        """`contracts` are what is described."""
        self._contracts = contracts

    def topic(self, topic: str) -> Json:
        """Describe a topic's events; it has a typed payload."""
        name = "".join(part.capitalize() for part in topic.replace("-", ".").split("."))
        defined: set[str] = set()
        spelt = _spelling(topic)
        payloads = [self._record(one, spelt, defined) for one in PAYLOADS[topic]]
        payload = payloads[0] if len(payloads) == 1 else payloads
        record = self._record(_EVENT, spelt, defined, payload) | {"name": name, "namespace": "gaggle.events"}
        return {"doc": f"Events of the topic {topic}."} | record

    def _record(self, name: str, spelt: "Spelling", defined: set[str], payload: Any = None) -> Json:
        defined.add(name)
        package, _, simple = name.rpartition(".")
        fields = []
        for one in self._contracts.messages[name].field:
            field: Json = {"name": spelt(one.name)} | self._field(one, spelt, defined)
            if payload is not None and one.name == "data":
                field |= {"type": payload}
            doc = self._contracts.comment(f"{name}.{one.name}")
            fields.append(field | ({"doc": doc["description"]} if doc else {}))
        return {"type": "record", "name": simple, "namespace": package, "fields": fields}

    def _field(self, field: pb.FieldDescriptorProto, spelt: "Spelling", defined: set[str]) -> Json:
        if (value := self._contracts.map_value(field)) is not None:
            return {"type": {"type": "map", "values": self._one(value, spelt, defined)[0]}, "default": {}}
        kind, default = self._one(field, spelt, defined)
        if _is_list(field):
            items = [one for one in kind if one != "null"][0] if isinstance(kind, list) else kind  # noqa: RUF015
            return {"type": {"type": "array", "items": items}, "default": []}
        return {"type": kind} | ({} if default is ... else {"default": default})

    def _one(self, field: pb.FieldDescriptorProto, spelt: "Spelling", defined: set[str]) -> tuple[Any, Any]:  # noqa: PLR0911 - a table
        if field.type in _32_BITS:
            return "long", 0
        if field.type in _FLOATS:
            return "double", 0
        if field.type == _Field.TYPE_BOOL:
            return "boolean", False
        if field.type != _Field.TYPE_MESSAGE:
            # 64-bit numbers and enums, too: so they are on the wire, and a new enum value breaks no reader.
            return "string", "0" if field.type in _64_BITS else ""
        name = _type_name(field)
        if name in {"google.protobuf.Timestamp", "google.protobuf.Duration"}:
            return "string", ""
        if name == "google.protobuf.Struct":
            # Of the envelope alone, whose payload takes its place.
            return "string", ...
        return ["null", name if name in defined else self._record(name, spelt, defined)], None


Spelling = Callable[[str], str]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _spelling(topic: str) -> Spelling:
    return (lambda name: name) if topic in SNAKE_CASE_TOPICS else _camel


def read_contracts() -> Contracts:
    """Reads protos/."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert buf is not None, "buf is not in the virtual environment"
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        subprocess.run([buf, "build", "-o", str(image)], check=True)
        return Contracts(pb.FileDescriptorSet.FromString(image.read_bytes()))


def write(folder: Path) -> None:
    """Writes every schema below the folder, in place of those that are there."""
    contracts = read_contracts()
    for name, suffix, schemas, names in (
        ("json", "schema.json", JsonSchemas(contracts).topic, ALL_TOPICS),
        ("avro", "avsc", AvroSchemas(contracts).topic, tuple(PAYLOADS)),
    ):
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for topic in names:
            text = json.dumps(schemas(topic), indent=2, ensure_ascii=False)
            (target / f"{topic}.{suffix}").write_text(text + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
