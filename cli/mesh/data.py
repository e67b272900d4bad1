"""The data directory: everything that one local mesh keeps, in one place.

app-id-suffix        what is appended to every app id (state keys carry it, so it stays with the data)
mesh.json            the running mesh: addresses, ports, process ids (see cli.mesh.description)
secrets.json         what the secretstore component serves, mode 0600
keys/                signing keys as JWK, mode 0600; jwks.json holds their public halves
components/          the effective component YAML
configurations/      each sidecar's Configuration
logs/                one file a process, the one before kept as .1
identities/          with --mtls: the mesh's certificate authority, and what each sidecar asks it with
targets/             what there is to scrape, for Prometheus (see cli.mesh.observing)
postgres/ scheduler/
redis/ rabbitmq/ kafka/  whichever the component set names
run/                 Unix sockets
"""

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cli.errors import CommandError, Refused

PROJECT_ROOT = Path(__file__).resolve().parents[2]

_SUFFIX = re.compile(r"[a-z0-9-]{0,24}")
# sun_path holds 107 bytes and a terminator on Linux, 103 on macOS; ".s.PGSQL.5432.lock" is the longest name put there.
_SOCKET_DIRECTORY_BYTES = 103 - len("/.s.PGSQL.5432.lock")


def default_path() -> Path:
    """The data directory of commands that name none: $GAGGLE_DATA, else .gaggle in the project's folder."""
    return Path(os.environ.get("GAGGLE_DATA") or PROJECT_ROOT / ".gaggle")


@dataclass(frozen=True)
class DataDirectory:
    """Paths within one mesh's data directory; `path` is absolute."""

    path: Path

    @classmethod
    def at(cls, path: Path | None) -> "DataDirectory":
        """The directory at `path`, or the default one; it need not exist."""
        return cls((path or default_path()).expanduser().absolute())

    @property
    def mesh_file(self) -> Path:
        """mesh.json, there while a mesh runs (or was killed)."""
        return self.path / "mesh.json"

    @property
    def secrets_file(self) -> Path:
        """What the secretstore component reads."""
        return self.path / "secrets.json"

    @property
    def keys(self) -> Path:
        """The directory of signing keys."""
        return self.path / "keys"

    @property
    def components(self) -> Path:
        """The effective component YAML, written at each start."""
        return self.path / "components"

    @property
    def configurations(self) -> Path:
        """Each sidecar's Configuration, by service."""
        return self.path / "configurations"

    @property
    def identities(self) -> Path:
        """Sentry's authority, and the tokens that it takes."""
        return self.path / "identities"

    @property
    def logs(self) -> Path:
        """One log file a process."""
        return self.path / "logs"

    @property
    def postgres(self) -> Path:
        """PostgreSQL's cluster."""
        return self.path / "postgres"

    @property
    def redis(self) -> Path:
        """Redis's append-only file."""
        return self.path / "redis"

    @property
    def rabbitmq(self) -> Path:
        """RabbitMQ's configuration and queues, in a mesh that has it."""
        return self.path / "rabbitmq"

    @property
    def kafka(self) -> Path:
        """Kafka's configuration, certificates and log, in a mesh that has it."""
        return self.path / "kafka"

    @property
    def scheduler(self) -> Path:
        """The scheduler's etcd data: jobs survive with it."""
        return self.path / "scheduler"

    @property
    def targets(self) -> Path:
        """Where Prometheus learns what to scrape."""
        return self.path / "targets"

    @property
    def supervisor_lock(self) -> Path:
        """Locked by the one supervisor that may run on this directory."""
        return self.path / "supervisor.lock"

    @property
    def sockets(self) -> Path:
        """Where Unix sockets lie: run/, or a short directory of its own where that path is too long for the kernel."""
        near = self.path / "run"
        if len(os.fsencode(near)) <= _SOCKET_DIRECTORY_BYTES:
            return near
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"gaggle-{digest}"

    @property
    def control_socket(self) -> Path:
        """Where the supervisor listens to `gaggle status`, `restart` and `down`."""
        return self.sockets / "control"

    def log(self, process: str) -> Path:
        """The log file of one process, by its name in the mesh."""
        return self.logs / f"{process}.log"

    def exists(self) -> bool:
        """Whether a mesh ever lived here."""
        return self._suffix_file.is_file()

    def create(self) -> None:
        """Makes what is missing, for this user alone.

        Raises:
            CommandError: it cannot be made, or the directory of the sockets belongs to somebody else.
        """
        try:
            kept = (self.keys, self.components, self.configurations, self.logs, self.redis, self.scheduler)
            for directory in (self.path, *kept):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            owner = self.sockets.stat()
        except OSError as error:
            raise CommandError(f"The data directory {self.path} cannot be made: {error}") from error
        if owner.st_uid != os.geteuid():
            raise Refused(f"{self.sockets} belongs to another user.")
        # It may have been made by another tool with a looser mask; sockets in it are trusted by their directory.
        self.sockets.chmod(0o700)

    def suffix(self) -> str:
        """The app-id suffix of this mesh; the environment's GAGGLE_APP_ID_SUFFIX gives a new one its own.

        Raises:
            Refused: the environment asks for another suffix than the data was made with.
        """
        asked = os.environ.get("GAGGLE_APP_ID_SUFFIX")
        if asked is not None and not _SUFFIX.fullmatch(asked):
            raise Refused(f"GAGGLE_APP_ID_SUFFIX is {asked!r}: it takes up to 24 of a-z, 0-9 and -.")
        if self._suffix_file.is_file():
            kept = self._suffix_file.read_text().strip()
            if asked is not None and asked != kept:
                raise Refused(
                    f"{self.path} was made with the app-id suffix {kept!r}, and GAGGLE_APP_ID_SUFFIX says {asked!r}. "
                    "State keys carry it: choose another --data, or unset the variable."
                )
            return kept
        return asked or ""

    def keep_suffix(self, suffix: str) -> None:
        """Writes the suffix beside the data that will carry it."""
        if not self._suffix_file.is_file():
            self._suffix_file.write_text(f"{suffix}\n")

    @property
    def _suffix_file(self) -> Path:
        return self.path / "app-id-suffix"


def write_private(path: Path, text: str) -> None:
    """Replaces a file at once, readable by its owner alone: a reader sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
