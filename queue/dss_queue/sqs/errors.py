"""Refusals of Amazon SQS: their codes, and which of them stand for those of this project."""

from __future__ import annotations

from dss_api.errors import Refused
from dss_queue.sqs.dialect import Dialect

SIMPLE = "AWS.SimpleQueueService."

#: __type -> the code of the older query protocol, which clients compare with
QUERY_CODES = {
    "QueueDoesNotExist": SIMPLE + "NonExistentQueue",
    "QueueNameExists": "QueueAlreadyExists",
    **{
        name: SIMPLE + name
        for name in (
            "BatchEntryIdsNotDistinct",
            "BatchRequestTooLong",
            "EmptyBatchRequest",
            "InvalidBatchEntryId",
            "MessageNotInflight",
            "PurgeQueueInProgress",
            "TooManyEntriesInBatchRequest",
            "UnsupportedOperation",
        )
    },
}
#: code of a refusal of this project -> (__type, HTTP status)
OF_REFUSALS = {
    "unauthenticated": ("InvalidClientTokenId", 403),
    "forbidden": ("AccessDenied", 403),
    "over_limit": ("OverLimit", 400),
    "too_large": ("InvalidParameterValue", 400),
    "head_too_large": ("InvalidParameterValue", 400),
    "request_timeout": ("RequestTimeout", 408),
    "not_found": ("QueueDoesNotExist", 400),
    "method_not_allowed": ("InvalidAction", 400),
    "invalid": ("InvalidParameterValue", 400),
    "internal": ("InternalFailure", 500),
    "not_supported_yet": ("UnsupportedOperation", 400),
    "not_on_engine": ("UnsupportedOperation", 400),
}
#: limits of a rate: the client waits and repeats the call
RATES = frozenset(("calls_per_second_per_address_max", "calls_per_second_per_token_max", "calls_per_token_max"))


class SqsError(Refused):
    """A refusal with an error code of SQS instead of one of this project."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message)
        self.status = status
        #: of a request in the query protocol; None: JSON
        self.dialect: Dialect | None = None

    @property
    def query_code(self) -> str:
        """The code that clients show and compare with."""
        return QUERY_CODES.get(self.code, self.code)


def no_queue() -> SqsError:
    return SqsError("QueueDoesNotExist", "The specified queue does not exist.")


def bad_value(message: str) -> SqsError:
    return SqsError("InvalidParameterValue", message)


def of_refusal(refusal: Refused) -> SqsError:
    """A refusal of an entry point or of the node."""
    if isinstance(refusal, SqsError):
        return refusal
    if refusal.extra.get("limit") in RATES:
        return SqsError("RequestThrottled", refusal.detail, 403)
    # What may succeed later, such as a call without a leader, is repeated by clients.
    code, status = OF_REFUSALS.get(refusal.code, ("ServiceUnavailable", 503))
    return SqsError(code, refusal.detail or refusal.code, status)
