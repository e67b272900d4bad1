"""Recipe files that tests read: our own samples, and a folder of real ones where it lies beside the repository."""

from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent / "samples"
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "goose-recipes"

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real recipes is not beside the repository")


def sample(name: str) -> str:
    """Read one of our own."""
    return (SAMPLES / name).read_text()


def real(name: str) -> str:
    """Read one of the real ones."""
    return (REAL / name).read_text()
