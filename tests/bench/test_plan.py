"""The bench's plan and what it writes."""

from pathlib import Path

from google.protobuf import descriptor_pb2, wrappers_pb2

from bench import protoset
from bench.plan import CLIENTS, FULL, PEER_HISTORIES, PEERS, QUICK, Cell, cells
from bench.report import chart, markdown, rows_of
from bench.stats import Round
from bench.targets import Results, checks
from bench.texts import TEXT_BYTES, texts


def test_no_cell_is_measured_twice() -> None:
    """Every row of the results is one cell."""
    found = cells()
    assert len(found) == len(set(found))


def test_every_system_has_a_client() -> None:
    """The report names for each system what measured it."""
    assert {cell.system for cell in cells()} == set(CLIENTS)


def test_peers_are_measured_at_their_histories() -> None:
    """Peers are read and appended to at 50 and 1,000 messages, by one caller and by 32."""
    for peer in PEERS:
        found = [cell for cell in cells() if cell.system == peer]
        assert {cell.history for cell in found} == set(PEER_HISTORIES)
        assert len(found) == 8


def test_a_choice_keeps_only_what_was_chosen() -> None:
    """--case and --system narrow the plan."""
    assert cells(["event"]) == [Cell("event", "gaggle", 1, 50)]
    assert {cell.system for cell in cells((), ["hop-relay"])} == {"hop-relay"}


def test_a_full_plan_measures_every_target() -> None:
    """No target is left without the rows that it needs."""
    rows = rows_of({cell: [Round(1.0, [1.0, 2.0])] for cell in cells()})
    assert all(check.value is not None for check in checks(Results(rows)))  # type: ignore[arg-type]


def test_every_cell_is_in_the_table() -> None:
    """The Markdown table has a line for each row, and the chart a bar for each system it shows."""
    rows = rows_of({cell: [Round(1.0, [1.0, 2.0])] for cell in cells()})
    lines = markdown(rows, [], FULL, 60.0).splitlines()
    assert sum(line.startswith("| ") and "---" not in line for line in lines) == len(rows) + 5 + 1
    assert chart(rows).count(">gaggle-mesh<") == 5


def test_texts_are_the_same_each_time() -> None:
    """Every system keeps the same bytes, in every run."""
    assert texts(60)[:50] == texts(50)
    assert {len(text) for text in texts(50)} == {TEXT_BYTES}


def test_requests_are_written_as_ghz_reads_them(tmp_path: Path) -> None:
    """Each request comes after its length as a varint."""
    path = tmp_path / "requests"
    long = wrappers_pb2.BytesValue(value=b"x" * 300).SerializeToString()
    protoset.write_requests(path, [b"ab", long])
    data = path.read_bytes()
    assert data == b"\x02ab" + bytes([len(long) & 0x7F | 0x80, len(long) >> 7]) + long


def test_the_descriptor_set_names_every_method(tmp_path: Path) -> None:
    """ghz finds each method it is told to call, and parses none of its messages."""
    path = tmp_path / "protoset"
    protoset.write(path)
    found = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    methods = {
        f"{file.package}.{service.name}/{method.name}"
        for file in found.file
        for service in file.service
        for method in service.method
    }
    assert methods == set(protoset.METHODS)
    assert all(not message.field for file in found.file for message in file.message_type)


def test_the_quick_run_is_the_shorter_one() -> None:
    """--quick measures the same cells in less time."""
    assert QUICK.rounds * QUICK.seconds < FULL.rounds * FULL.seconds
    assert QUICK.pools.keys() == FULL.pools.keys()
