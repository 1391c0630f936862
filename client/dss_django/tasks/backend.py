"""The backend of Django's tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

from django.apps import apps
from django.core import checks
from django.core.exceptions import SuspiciousOperation
from django.utils import timezone
from django.utils.module_loading import import_string

from dss_client import Client
from dss_django.clients import client_for
from dss_django.locks import client as client_of_settings
from dss_django.tasks.compat import (
    BaseTaskBackend,
    Task,
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    normalize_json,
    task_enqueued,
)
from dss_django.tasks.names import TaskId, new_secret, segment_of
from dss_django.tasks.options import DURATION_S_MAX, read_options
from dss_django.tasks.records import Call, Known, from_ms, from_text, to_text
from dss_django.tasks.store import Store, store_for


class DSSBackend(BaseTaskBackend):
    """See `dss_django.tasks`.

    Args:
        params: QUEUES as for Django's backends, and OPTIONS: those of `TaskOptions`, and of the client (`urls`, `token`, `name`,
            `timeout`, `transport`, `traces`). Without `urls`, the cluster is that of the setting DSS.

    Raises:
        ImproperlyConfigured
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        self.settings, self._of_client = read_options(self.options)

    @cached_property
    def client(self) -> Client:
        """Shared with what has the same addresses and options in this process, such as locks."""
        if not self._of_client:
            return client_of_settings()
        options = dict(self._of_client)
        return client_for(options.pop("urls", None), options)

    @cached_property
    def store(self) -> Store:
        return store_for(self.client._client, self.settings)

    # ------------------------------------------------------------ enqueue

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Store the task. It has an id when the cluster has it on the disks of a majority, whatever happens to a transaction."""
        self.validate_task(task)
        call = self._call(task, args, kwargs)
        result = self._result(Known(str(self.client._run(self._enqueue(task, call))), call), task)
        task_enqueued.send(type(self), task_result=result)
        return result

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        self.validate_task(task)
        call = self._call(task, args, kwargs)
        result = self._result(Known(str(await self.client._await(self._enqueue(task, call))), call), task)
        await task_enqueued.asend(type(self), task_result=result)
        return result

    async def _enqueue(self, task: Any, call: Call) -> TaskId:
        level = self.settings.level_of(task.priority)
        return await self.store.enqueue(segment_of(task.queue_name), level, call, seconds_until(task.run_after))

    def _call(self, task: Any, args: Any, kwargs: Any) -> Call:
        return Call(
            secret=new_secret(),
            path=task.module_path,
            queue=task.queue_name,
            enqueued_at=to_text(timezone.now()),
            priority=int(task.priority),
            args=normalize_json(list(args)),
            kwargs=normalize_json(dict(kwargs)),
            run_after=to_text(task.run_after),
        )

    # ------------------------------------------------------------ results

    def get_result(self, result_id: str) -> Any:
        """The task with its present state.

        Raises:
            TaskResultDoesNotExist: there is none with this id, or its result is older than `result_retention`.
            ImportError, SuspiciousOperation: its function is no task, or no longer one.
        """
        return self._found(result_id, self.client._run(self._find(result_id)))

    async def aget_result(self, result_id: str) -> Any:
        return self._found(result_id, await self.client._await(self._find(result_id)))

    async def _find(self, result_id: str) -> Known | None:
        id = TaskId.parse(str(result_id))
        return None if id is None else await self.store.find(id)

    def _found(self, result_id: str, known: Known | None) -> Any:
        if known is None:
            raise TaskResultDoesNotExist(result_id)
        return self.result_of(known)

    def result_of(self, known: Known) -> Any:
        """The `TaskResult`.

        Raises:
            ImportError, SuspiciousOperation: see `get_result`.
        """
        return self._result(known, self.task_of(known))

    def task_of(self, known: Known) -> Any:
        call = known.call
        task = import_string(call.path)
        if not isinstance(task, Task):
            raise SuspiciousOperation(f"Task {known.id} does not point to a Task ({call.path})")
        return task.using(priority=call.priority, queue_name=call.queue, run_after=from_text(call.run_after), backend=self.alias)

    def _result(self, known: Known, task: Any) -> Any:
        result = TaskResult(
            task=task,
            id=known.id,
            status=TaskResultStatus[known.status],
            enqueued_at=from_text(known.call.enqueued_at),
            started_at=from_ms(known.started_ms),
            finished_at=from_ms(known.finished_ms),
            last_attempted_at=from_ms(known.attempted_ms),
            args=known.call.args,
            kwargs=known.call.kwargs,
            backend=self.alias,
            errors=[TaskError(exception_class_path=one.exception, traceback=one.traceback) for one in known.errors],
            worker_ids=list(known.worker_ids),
        )
        object.__setattr__(result, "_return_value", known.value)
        return result

    # ------------------------------------------------------------- checks

    def check(self, **kwargs: Any) -> Iterable[checks.CheckMessage]:
        yield from super().check(**kwargs)
        if not apps.is_installed("dss_django"):
            yield checks.Error(
                f"{type(self).__name__} is a backend of TASKS, but the app of its worker is not installed",
                hint="Add 'dss_django' to INSTALLED_APPS",
                id="dss_django.E001",
            )


def seconds_until(moment: datetime | None) -> float:
    """How long to hide a task that runs after this moment."""
    if moment is None:
        return 0.0
    now = timezone.now() if timezone.is_aware(moment) else datetime.now()
    return min(max(0.0, (moment - now).total_seconds()), DURATION_S_MAX)
