"""A watcher of a preparation that shows nothing."""


class Quiet:
    """Is told how far the work is."""

    def advance(self, read: int, total: int | None, tokens: int) -> None:
        """Nothing."""

    def whole(self, name: str, tokens: int) -> None:
        """Nothing."""
