"""What all tests share."""

from hypothesis import settings

# How long an example takes says more of the machine's other work than of the code; whole tests have a time limit.
settings.register_profile("gaggle", deadline=None)
settings.load_profile("gaggle")
