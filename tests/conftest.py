"""What all tests share."""

import gc

from hypothesis import settings

# How long an example takes says more of the machine's other work than of the code; whole tests have a time limit.
settings.register_profile("gaggle", deadline=None)
settings.load_profile("gaggle")


def pytest_collection_finish() -> None:
    """Take the tests themselves out of the garbage collector's sight.

    With thousands of them each full collection takes half a second, in which an event loop stands still.
    """
    gc.collect()
    gc.freeze()
