"""RabbitMQ's server with its Erlang: an installed one, else Debian's packages unpacked into the cache."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cli.binaries.build import Progress
from cli.binaries.debian import unpacked
from cli.errors import MissingTool

_PACKAGE = "rabbitmq-server"
_SCRIPTS = "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"
_ERLANG = Path("/usr/lib/erlang")


@dataclass(frozen=True)
class RabbitMQ:
    """Paths of what a broker is started with; `erlang` is the folder of erl and epmd."""

    server: Path
    erlang: Path


def rabbitmq(progress: Progress) -> RabbitMQ:
    """An installed RabbitMQ, else the one in the cache, else Debian's, unpacked into it.

    Raises:
        MissingTool: it is not installed, and this is no Debian.
        CommandError: it cannot be downloaded.
    """
    return _installed() or _unpacked(progress)


def _installed() -> RabbitMQ | None:
    erl = shutil.which("erl")
    on_path = shutil.which(_PACKAGE)
    # Debian's own command insists on the user rabbitmq; the script behind it does not.
    servers = [*Path("/").glob(_SCRIPTS), *([Path(on_path).resolve()] if on_path else [])]
    for server in servers:
        if erl is not None and server.with_name("rabbitmq-env").exists():
            return RabbitMQ(server=server, erlang=Path(erl).parent)
    return None


def _unpacked(progress: Progress) -> RabbitMQ:
    root = unpacked(_PACKAGE, progress)
    servers = list(root.glob(_SCRIPTS))
    if not servers:
        raise MissingTool(f"{root} holds no RabbitMQ: remove that folder and try again.")
    erlang = root / _ERLANG.relative_to("/")
    if not erlang.exists():
        # Erlang was installed, RabbitMQ was not.
        return RabbitMQ(server=servers[0], erlang=_ERLANG / "bin")
    erl = erlang / "bin" / "erl"
    # The script has the place in it where the package would have put it.
    script = erl.read_text()
    if f"ROOTDIR={_ERLANG}\n" in script:
        moved = erl.with_name("erl.moved")
        moved.write_text(script.replace(f"ROOTDIR={_ERLANG}\n", f"ROOTDIR={erlang}\n"))
        moved.chmod(0o755)
        moved.replace(erl)
    return RabbitMQ(server=servers[0], erlang=erl.parent)
