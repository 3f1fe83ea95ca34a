"""How a run ended, as it is told: the field of the spec that a message is about."""

from __future__ import annotations

import pytest

from mms_operator.plan.stores import Location
from mms_operator.plan.training import outcome
from mms_workloads.contract import Outcome, Store

DATA = Location("spec.data", Store(uri="s3://corpora/text/*.txt", credentials="data"), secret="mine")
STORAGE = Location("spec.storage", Store(uri="s3://mms/d/words/runs/1"), secret="words-store", installation=True)

MESSAGES = {
    "wrong key for the data": (
        "CredentialsInvalid", "no such key for s3://corpora/text/*.txt",
        "no such key for s3://corpora/text/*.txt. (spec.data.secretRef names the Secret mine)",
    ),
    "a file of the data": (
        "DataUnreadable", "s3://corpora/text/a.txt is not UTF-8",
        "s3://corpora/text/a.txt is not UTF-8. (see spec.data)",
    ),
    "the installation's store": (
        "StorageDenied", "s3://mms/d/words/runs/1/owner.json may not be written to",
        "s3://mms/d/words/runs/1/owner.json may not be written to. (spec.storage uses the installation's store)",
    ),
    "a file that may not be read": (
        "DataUnreadable", "s3://corpora/text/a.txt may not be read with these credentials",
        "s3://corpora/text/a.txt may not be read with these credentials. (spec.data.secretRef names the Secret mine)",
    ),
    "the store is away": (
        "StorageUnreachable", "s3://mms/d/words: no answer", "s3://mms/d/words: no answer. (see spec.storage)",
    ),
    "data without an address": (
        "DataEmpty", "all 1 files are empty", "all 1 files are empty. (spec.data.uri is s3://corpora/text/*.txt)",
    ),
    "nothing about a store": ("InternalError", "a bug", "a bug"),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_explain(case: str) -> None:
    reason, message, said = MESSAGES[case]
    failed = Outcome(result="Failed", reason=reason, message=message)
    assert outcome.explain(failed, (DATA, STORAGE)) == said
