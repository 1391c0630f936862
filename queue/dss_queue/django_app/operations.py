"""Operations that only the admin offers."""

from __future__ import annotations

from typing import Any

from dss_api.answer import Answer
from dss_api.operation import Operation
from dss_api.result import Result
from dss_api.rights import OPERATE
from dss_queue import both_engines
from dss_queue.core.topic_commands import DeleteDead


class DeleteDeadAnswer(Answer):
    #: false: there was no such dead letter
    deleted: bool


async def delete_dead(node: Any, request: DeleteDead) -> Result:
    return await both_engines.delete_dead(node, request)


DELETE_DEAD = Operation(
    name="queue.delete_dead",
    method="POST",
    path="/queue/delete_dead",
    request=DeleteDead,
    handle=delete_dead,
    answer=DeleteDeadAnswer,
    needs=OPERATE,
    summary="Delete a dead letter",
)
