"""Which transform a block has: augmentation is dealt like the data. Pure.

In data epoch e block b is seen under transform (b + e) mod n of n. So neighbours in the ring of blocks differ, a block
has had each transform after n data epochs, and each data epoch has all of them in equal parts, whatever the number of
workers and whoever holds a lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

IDENTITY = "Identity"
MIXUP = "Mixup"


def chosen(transforms: Sequence[str], block: int, data_epoch: int) -> str:
    """The block's transform in a data epoch; Identity where there are none."""
    return transforms[(block + data_epoch) % len(transforms)] if transforms else IDENTITY
