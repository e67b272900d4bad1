"""What all tests share."""

import gc
import signal

from hypothesis import settings

# How long an example takes says more of the machine's other work than of the code; whole tests have a time limit.
settings.register_profile("gaggle", deadline=None)
settings.load_profile("gaggle")

# A shell that starts this in the background has it ignore Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Take the tests themselves out of the garbage collector's sight.

    With thousands of them each full collection takes half a second, in which an event loop stands still.
    """
    gc.collect()
    gc.freeze()
