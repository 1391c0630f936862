"""AddPermission and RemovePermission: statements of the attribute `Policy`, which has no effect here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from dss_queue.core.sqs_queues import ChangeQueue
from dss_queue.sqs.attributes import arn_of
from dss_queue.sqs.calls import Call, Reply, find_queue, submit
from dss_queue.sqs.errors import SqsError, bad_value

ACTIONS_MAX = 7
#: the most statements of a policy, and the most accounts of a statement
STATEMENTS_MAX = 20
ACCOUNTS_MAX = 50
#: other calls may change the policy at the same time
TRIES = 10
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,80}")
_ACCOUNT = re.compile(r"\d{12}")
_ACTIONS = frozenset(
    (
        "*",
        "ChangeMessageVisibility",
        "DeleteMessage",
        "GetQueueAttributes",
        "GetQueueUrl",
        "ListDeadLetterSourceQueues",
        "PurgeQueue",
        "ReceiveMessage",
        "SendMessage",
    )
)

Policy = dict[str, Any]


async def add_permission(call: Call) -> Reply:
    await find_queue(call)
    given = call.input
    if not given.actions:
        raise SqsError("MissingParameter", "The request must contain the parameter Actions.")
    if len(given.actions) > ACTIONS_MAX:
        raise SqsError("OverLimit", f"{len(given.actions)} Actions were found, maximum allowed is {ACTIONS_MAX}.", 403)
    accounts = given.account_ids
    if not accounts or len(accounts) > ACCOUNTS_MAX or not all(map(_ACCOUNT.fullmatch, accounts)):
        raise bad_value(f"Value {accounts} for parameter PrincipalId is invalid. Reason: Unable to verify.")
    for action in given.actions:
        if action not in _ACTIONS:
            reason = "Only the queue owner is allowed to invoke this action."
            raise bad_value(f"Value SQS:{action} for parameter ActionName is invalid. Reason: {reason}")
    if not _LABEL.fullmatch(given.label):
        raise bad_value(f"Value {given.label} for parameter Label is invalid.")
    arn = arn_of(call.name, call.region)
    statement = {
        "Sid": given.label,
        "Effect": "Allow",
        "Principal": {"AWS": _one_or_all([f"arn:aws:iam::{account}:root" for account in accounts])},
        "Action": _one_or_all([f"SQS:{action}" for action in given.actions]),
        "Resource": arn,
    }

    def added(policy: Policy) -> Policy:
        present = _statements(policy)
        if any(one.get("Sid") == given.label for one in present):
            raise bad_value(f"Value {given.label} for parameter Label is invalid. Reason: Already exists.")
        if len(present) >= STATEMENTS_MAX:
            raise SqsError("OverLimit", f"A policy has at most {STATEMENTS_MAX} statements.", 403)
        head = policy or {"Version": "2012-10-17", "Id": f"{arn}/SQSDefaultPolicy"}
        return {**head, "Statement": [*present, statement]}

    await _change(call, added)
    return Reply()


async def remove_permission(call: Call) -> Reply:
    label = call.input.label

    def removed(policy: Policy) -> Policy:
        present = _statements(policy)
        left = [one for one in present if one.get("Sid") != label]
        if len(left) == len(present):
            raise bad_value(f"Value {label} for parameter Label is invalid. Reason: can't find label on existing policy.")
        return {**policy, "Statement": left} if left else {}

    await _change(call, removed)
    return Reply()


async def _change(call: Call, change: Callable[[Policy], Policy]) -> None:
    """Change the policy. If another call changes it at the same time, read it again and retry."""
    for _ in range(TRIES):
        await call.node.read_index()
        before = (await find_queue(call)).attributes.get("Policy", "")
        try:
            policy = msgspec.json.decode(before, type=Policy) if before else {}
        except msgspec.MsgspecError:
            policy = {}
        after = change(policy)
        text = msgspec.json.encode(after).decode() if after else ""
        result = await submit(call, ChangeQueue(topic=call.name, attributes={"Policy": text}, expected={"Policy": before}))
        if result.body["changed"]:
            return
    raise SqsError("ServiceUnavailable", "Other calls are changing the policy of this queue. Try again.", 503)


def _statements(policy: Policy) -> list[Policy]:
    found = policy.get("Statement", [])
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _one_or_all(texts: list[str]) -> str | list[str]:
    return texts[0] if len(texts) == 1 else texts
