"""How an operation on a connection ends when it does not succeed."""

from __future__ import annotations


class PeerLost(Exception):  # noqa: N818 - an event in the life of an epoch, not an error
    """The connection is broken, timed out or aborted: the epoch is over for it.

    places: positions of members that could not be reached in time.
    """

    def __init__(self, message: str, places: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.places = places


class Refused(Exception):  # noqa: N818 - a verdict, not an error
    """Fence, certificate, protocol or collective did not match; the text says what differed."""
