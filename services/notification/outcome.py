"""What went wrong with a delivery."""


class DeliveryError(Exception):
    """It was not delivered, or nobody knows that it was."""

    def __init__(self, text: str, *, for_good: bool = False) -> None:
        """`for_good`: trying again would not help, so an admin has to look. The text holds no secret."""
        super().__init__(" ".join(text.split()))
        self.for_good = for_good
