"""What ends a membership epoch's connections when the epoch is over, whoever waits on them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mms_workloads.transport.channel import Abort

if TYPE_CHECKING:
    from collections.abc import Callable


class Severing:
    """over: whether the epoch that this process takes part in is over. `look` is called when that may have changed."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over, self._abort = over, Abort()
        self._lock = threading.RLock()  # `look` sets, in another thread or a signal, what `renew` closes

    @property
    def abort(self) -> Abort:
        return self._abort

    def renew(self) -> None:
        """Another epoch; that one may be over as well by now."""
        with self._lock:
            self._abort.close()
            self._abort = Abort()
        self.look()

    def look(self) -> None:
        with self._lock:
            if self._over():
                self._abort.set()
