"""The descriptor set that ghz is given.

Every request and response is described as an empty message: ghz then sends bytes as they are and keeps an answer's
bytes unparsed, so that the client's part is the same for every system and as small as can be.
"""

from pathlib import Path

from google.protobuf import descriptor_pb2

METHODS = (
    "gaggle.conversation.v1.ConversationService/ListMessages",
    "gaggle.conversation.v1.ConversationService/AppendMessages",
    "dapr.proto.runtime.v1.Dapr/GetState",
    "dapr.proto.runtime.v1.Dapr/ExecuteStateTransaction",
    "gaggle.bench.v1.Hop/Get",
)


def write(path: Path) -> None:
    """Write the descriptor set."""
    services: dict[str, list[str]] = {}
    for method in METHODS:
        service, name = method.split("/")
        services.setdefault(service, []).append(name)
    found = descriptor_pb2.FileDescriptorSet()
    for full_name, methods in services.items():
        package, service = full_name.rsplit(".", 1)
        file = found.file.add(name=f"{full_name}.proto", package=package, syntax="proto3")
        file.message_type.add(name="Opaque")
        described = file.service.add(name=service)
        for name in methods:
            described.method.add(name=name, input_type=f".{package}.Opaque", output_type=f".{package}.Opaque")
    path.write_bytes(found.SerializeToString())


def write_requests(path: Path, requests: list[bytes]) -> None:
    """Write requests as ghz reads them, each after its length as a varint; it goes round them."""
    path.write_bytes(b"".join(_varint(len(request)) + request for request in requests))


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
