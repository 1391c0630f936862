"""Tasks on the queue, for `django.tasks` (Django 6) and for the package `django-tasks` (Django 5.2).

    TASKS = {"default": {"BACKEND": "dss_django.tasks.DSSBackend"}}

`manage.py dss_worker` runs them. A task is a message. Its state is that of the message, so it cannot differ from what happens: READY
while the message waits, RUNNING while a worker has it, FAILED when it is a dead letter. The acknowledgement of a task that succeeded and
its result are one command of the replicated log: a worker that was too late, because another one has the task by now, leaves no result.

| module | contents |
|---|---|
| `compat` | the names of `django.tasks`, wherever they come from |
| `names` | topics, and the ids of tasks |
| `options` | the settings of a backend |
| `records` | what the messages contain |
| `store` | the calls to the cluster |
| `backend` | the backend |
| `topics` | taking messages by priority |
| `worker` | running tasks |
"""

from dss_django.tasks.backend import DSSBackend
from dss_django.tasks.records import ErrorNotKept, ResultTooLarge, WorkerLost

__all__ = ["DSSBackend", "ErrorNotKept", "ResultTooLarge", "WorkerLost"]
