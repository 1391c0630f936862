"""The tests of django-tasks-db, as far as they are about a backend and its worker, and some about what is different here.

`test_django_tasks.py` runs them: Django 5.2 with django-tasks, and Django 6.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from io import StringIO
from pathlib import Path
from unittest import mock

import jobs
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import SimpleTestCase, TransactionTestCase, override_settings, tag
from django.utils import timezone

from dss_client import StaleReceipt
from dss_django.tasks import DSSBackend, ResultTooLarge, WorkerLost
from dss_django.tasks.compat import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from dss_django.tasks.names import GROUP, TaskId, tasks_topic
from dss_django.tasks.options import TaskOptions
from dss_django.tasks.records import Call
from dss_django.tasks.worker import TaskWorker

numbers = itertools.count(1)
#: for what is awaited; never reached unless something is broken
PATIENCE_S = 60.0


def until(condition):
    """Wait for a condition; its value."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.02)
    return value


def setUpModule():
    # The log of failing tasks would hide that of tests.
    logging.getLogger("dss_django.tasks").setLevel(logging.CRITICAL)
    for name in ("django.tasks", "django_tasks"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class TasksMixin:
    """Each test has topics of its own."""

    options = {}

    def setUp(self):
        super().setUp()
        self.namespace = f"{settings.OPTIONS['namespace']}-{next(numbers)}"
        self.use()

    def use(self, **options):
        """Set OPTIONS."""
        given = {**settings.OPTIONS, "namespace": self.namespace, **self.options, **options}
        tasks = {**settings.TASKS, "default": {**settings.TASKS["default"], "OPTIONS": given}}
        self.enterContext(override_settings(TASKS=tasks))

    @property
    def backend(self):
        return task_backends["default"]

    def run_worker(self, **options):
        output = StringIO()
        call_command("dss_worker", **{"batch": True, "reload": False, "verbosity": 0, "stdout": output, **options})
        return output.getvalue()

    def enqueue_path(self, path, *args):
        """A task that could not be enqueued with the backend, because its function is none."""
        call = Call(secret="s" * 12, path=path, queue="default", enqueued_at=timezone.now().isoformat(), args=list(args))
        return str(self.backend.client._run(self.backend.store.enqueue("default", 0, call, 0)))

    def status(self, id):
        return self.backend.client._run(self.backend._find(id)).status

    @contextlib.contextmanager
    def received(self, signal):
        got = []

        def receive(sender, task_result, **kwargs):
            got.append((sender, task_result))

        signal.connect(receive)
        try:
            yield got
        finally:
            signal.disconnect(receive)


class BackendTests(TasksMixin, SimpleTestCase):
    def test_using_correct_backend(self):
        self.assertIsInstance(self.backend, DSSBackend)
        self.assertEqual(self.backend.alias, "default")

    def check_ready(self, result, task, args, kwargs):
        self.assertLess(len(result.id), 64)
        self.assertEqual(result.status, TaskResultStatus.READY)
        self.assertFalse(result.is_finished)
        self.assertIsNone(result.started_at)
        self.assertIsNone(result.last_attempted_at)
        self.assertIsNone(result.finished_at)
        with self.assertRaisesMessage(ValueError, "Task has not finished yet"):
            _ = result.return_value
        self.assertEqual(result.task, task)
        self.assertEqual(result.args, args)
        self.assertEqual(result.kwargs, kwargs)
        self.assertEqual(result.attempts, 0)

    def test_enqueue_task(self):
        for task in (jobs.noop_task, jobs.noop_task_async):
            with self.subTest(task), self.received(task_enqueued) as received:
                result = task.enqueue(1, two=3)
                self.check_ready(result, task, [1], {"two": 3})
                self.assertEqual(received, [(DSSBackend, result)])

    async def test_enqueue_task_async(self):
        for task in (jobs.noop_task, jobs.noop_task_async):
            with self.received(task_enqueued) as received:
                result = await task.aenqueue()
                self.check_ready(result, task, [], {})
                self.assertEqual(received, [(DSSBackend, result)])

    def test_get_result(self):
        result = self.backend.enqueue(jobs.noop_task, [], {})
        self.assertEqual(self.backend.get_result(result.id), result)
        self.assertEqual(jobs.noop_task.get_result(result.id), result)

    async def test_get_result_async(self):
        result = await self.backend.aenqueue(jobs.noop_task, [], {})
        self.assertEqual(await self.backend.aget_result(result.id), result)

    def test_result_before_a_worker_was_ever_there(self):
        """With a token that may publish only, the enqueuing process cannot make the group."""
        with mock.patch.object(type(self.backend.store), "prepare", new=mock.AsyncMock()):
            result = jobs.noop_task.enqueue()
        self.assertEqual(self.backend.get_result(result.id), result)

    def test_refresh_result(self):
        result = jobs.calculate_meaning_of_life.enqueue()
        self.run_worker()
        self.assertEqual(result.status, TaskResultStatus.READY)
        result.refresh()
        self.assertIsNotNone(result.started_at)
        self.assertIsNotNone(result.last_attempted_at)
        self.assertGreaterEqual(result.finished_at, result.started_at)
        self.assertEqual(result.status, TaskResultStatus.SUCCESSFUL)
        self.assertTrue(result.is_finished)
        self.assertEqual(result.return_value, 42)
        self.assertEqual(result.attempts, 1)

    async def test_refresh_result_async(self):
        result = await jobs.calculate_meaning_of_life.aenqueue()
        await asyncio.to_thread(self.run_worker)
        await result.arefresh()
        self.assertEqual((result.status, result.return_value), (TaskResultStatus.SUCCESSFUL, 42))

    def test_get_missing_result(self):
        real = jobs.noop_task.enqueue().id
        queue, level, msg_id, secret = real.split(".")
        others = ["123", "", "x" * 100, f"{queue}.{level}.{msg_id}.{'s' * 12}", f"{queue}.50.{msg_id}.{secret}"]
        others += [
            f"unknown.{level}.{msg_id}.{secret}",
            f"{queue}.{level}.1-0.{secret}",
            f"{real}\n",
            f"{queue}.999.{msg_id}.{secret}",
        ]
        for id in others:
            with self.subTest(id), self.assertRaises(TaskResultDoesNotExist):
                self.backend.get_result(id)

    async def test_async_get_missing_result(self):
        with self.assertRaises(TaskResultDoesNotExist):
            await self.backend.aget_result("default.0.1-0.abcdefghijkl")

    def test_the_id_cannot_be_used_for_another_task(self):
        result = jobs.noop_task.enqueue()
        with self.assertRaisesMessage(Exception, "Task does not match"):
            jobs.echo.get_result(result.id)

    def test_paths_that_are_no_task(self):
        with self.assertRaisesMessage(SuspiciousOperation, "does not point to a Task (jobs.not_a_task)"):
            self.backend.get_result(self.enqueue_path("jobs.not_a_task", 1))
        with self.assertRaises(ImportError):
            self.backend.get_result(self.enqueue_path("missing.function"))

    def test_check(self):
        self.assertEqual(list(self.backend.check()), [])
        with mock.patch("django.apps.apps.is_installed", return_value=False):
            (error,) = self.backend.check()
        self.assertIn("'dss_django'", error.hint)

    def test_priority_range_check(self):
        for priority in (-101, 101, 0.5):
            with self.subTest(priority), self.assertRaises(InvalidTask):
                jobs.noop_task.using(priority=priority)

    def test_validate_on_enqueue(self):
        task = jobs.noop_task.using(queue_name="queue-1")
        tasks = {"default": {**settings.TASKS["default"], "QUEUES": ["default"]}}
        with override_settings(TASKS=tasks), self.assertRaisesMessage(InvalidTask, "queue-1"):
            task.enqueue()

    def test_arguments_that_are_not_json(self):
        with self.assertRaises(TypeError):
            jobs.noop_task.enqueue(object())

    def test_options(self):
        wrong = [
            {"max_atempts": 3},
            {"max_attempts": 0},
            {"priorities": [0, 50]},
            {"priorities": [-100, 50, 0]},
            {"priorities": [-100, 101]},
            {"priorities": []},
            {"visibility": 0},
            {"result_retention": 0},
            {"namespace": ""},
            {"backoff": "soon"},
        ]
        for options in wrong:
            with self.subTest(options), self.assertRaises(ImproperlyConfigured):
                DSSBackend("default", {"OPTIONS": options})
        self.assertEqual(DSSBackend("default", {}).settings.max_attempts, 3)

    def test_threads_share_what_they_know_of_topics(self):
        jobs.noop_task.enqueue()
        with mock.patch("dss_client.queue.AsyncTopic.stats", side_effect=AssertionError("it was asked again")):
            thread = threading.Thread(target=lambda: results.append(jobs.noop_task.enqueue()))
            results = []
            thread.start()
            thread.join()
        self.assertEqual(len(results), 1)

    def test_the_cluster_of_the_options(self):
        backend = DSSBackend("default", {"OPTIONS": {"urls": [os.environ["DSS_URLS"]], "token": os.environ["DSS_TOKEN"]}})
        self.assertIsNot(backend.client, self.backend.client)
        backend.client.call("ready")

    def test_names_that_no_topic_can_have(self):
        for queue in ("ü" * 300, "a/b", "a" * 64, "x\n"):
            with self.subTest(queue):
                tasks = {"default": {**settings.TASKS["default"], "QUEUES": [queue], "OPTIONS": {"namespace": self.namespace}}}
                with override_settings(TASKS=tasks):
                    result = jobs.calculate_meaning_of_life.using(queue_name=queue).enqueue()
                    self.assertLess(len(result.id), 64)
                    self.run_worker()
                    result.refresh()
                    self.assertEqual(result.return_value, 42)
                    self.assertEqual(result.task.queue_name, queue)


class TransactionTests(TasksMixin, TransactionTestCase):
    def test_doesnt_wait_until_transaction_commit(self):
        with transaction.atomic():
            result = jobs.noop_task.enqueue()
            self.assertEqual(self.status(result.id), "READY")

    def test_on_commit(self):
        with self.received(task_enqueued) as received:
            with transaction.atomic():
                transaction.on_commit(jobs.noop_task.enqueue)
                self.assertEqual(received, [])
            self.assertEqual(len(received), 1)


class WorkerTests(TasksMixin, SimpleTestCase):
    def test_run_enqueued_task(self):
        for task in (jobs.noop_task, jobs.noop_task_async):
            with self.subTest(task):
                result = task.enqueue()
                with self.received(task_started) as started, self.received(task_finished) as finished:
                    self.run_worker(worker_id="one")
                self.assertEqual([one.status for _, one in started], ["RUNNING"])
                self.assertEqual(
                    [(sender, one.id, one.status) for sender, one in finished], [(DSSBackend, result.id, "SUCCESSFUL")]
                )
                result.refresh()
                self.assertEqual(result.status, TaskResultStatus.SUCCESSFUL)
                self.assertEqual(result.worker_ids, ["one"])
                self.assertEqual(finished[0][1], result)

    def test_batch_processes_all_tasks(self):
        results = [jobs.echo.enqueue(number) for number in range(20)]
        failed = jobs.failing_task.enqueue()
        self.run_worker(concurrency=4)
        for number, result in enumerate(results):
            result.refresh()
            self.assertEqual(result.return_value, [[number], {}])
        self.assertEqual(self.status(failed.id), "FAILED")

    def test_a_batch_includes_what_its_tasks_enqueue(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "effects"
            jobs.enqueue_another.enqueue(str(path))
            self.run_worker(concurrency=2)
            self.assertEqual(path.read_text(), "another\n")

    def test_no_tasks(self):
        self.run_worker()

    def test_queues(self):
        one = jobs.noop_task.enqueue()
        other = jobs.noop_task.using(queue_name="queue-1").enqueue()
        self.run_worker(queue_name="queue-1")
        self.assertEqual((self.status(one.id), self.status(other.id)), ("READY", "SUCCESSFUL"))
        other = jobs.noop_task.using(queue_name="queue-1").enqueue()
        self.run_worker(exclude_queues="queue-1")
        self.assertEqual((self.status(one.id), self.status(other.id)), ("SUCCESSFUL", "READY"))
        self.run_worker()
        self.assertEqual(self.status(other.id), "SUCCESSFUL")

    def test_wrong_arguments(self):
        wrong = [
            ["--exclude-queues=queue-1", "--queue-name=default"],
            ["--exclude-queues=queue-1,default"],
            ["--queue-name=unknown"],
            ["--backend=unknown"],
            ["--backend=immediate"],
            ["--max-tasks=0"],
            ["--max-tasks=-1"],
            ["--concurrency=0"],
            ["--concurrency=1000"],
            ["--grace=inf"],
            ["--worker-id="],
            ["--worker-id=" + "a" * 41],
        ]
        for arguments in wrong:
            with self.subTest(arguments), self.assertRaises(CommandError):
                call_command("dss_worker", *arguments)

    def test_any_queue_must_be_named(self):
        tasks = {"default": {**settings.TASKS["default"], "QUEUES": [], "OPTIONS": {"namespace": self.namespace}}}
        with override_settings(TASKS=tasks):
            result = jobs.noop_task.using(queue_name="any").enqueue()
            with self.assertRaisesMessage(CommandError, "--queue-name"):
                self.run_worker()
            self.run_worker(queue_name="any")
            self.assertEqual(self.status(result.id), "SUCCESSFUL")

    def test_failing_task(self):
        result = jobs.failing_task.enqueue()
        with self.received(task_finished) as finished:
            self.run_worker()
        result.refresh()
        self.assertEqual([(one.id, one.status) for _, one in finished], [(result.id, "FAILED")])
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        self.assertIsNotNone(result.started_at)
        self.assertGreaterEqual(result.finished_at, result.last_attempted_at)
        with self.assertRaisesMessage(ValueError, "Task failed"):
            _ = result.return_value
        (error,) = result.errors
        self.assertEqual(error.exception_class, ValueError)
        self.assertTrue(error.traceback.startswith("Traceback"))
        self.assertTrue(error.traceback.endswith("ValueError: This task failed\n"))
        self.assertEqual(result.attempts, 1)
        dead = self.backend.client.topic(tasks_topic(self.namespace, "default", 0)).peek(group=GROUP, dead=True)
        self.assertEqual(dead[0]["msg_id"], TaskId.parse(result.id).msg_id)

    def test_complex_exception(self):
        result = jobs.complex_exception.enqueue()
        self.run_worker()
        result.refresh()
        self.assertEqual(result.errors[0].exception_class, ValueError)

    def test_an_error_that_is_no_utf8(self):
        result = jobs.error_that_is_no_utf8.enqueue()
        with self.received(task_finished) as finished:
            self.run_worker()
        self.assertEqual(len(finished), 1)
        result.refresh()
        self.assertTrue(result.errors[0].traceback.endswith("ValueError: file ?\n"))

    def test_of_a_long_traceback_the_end_is_kept(self):
        result = jobs.odd_error.enqueue()
        self.run_worker()
        result.refresh()
        (error,) = result.errors
        self.assertEqual(error.exception_class, jobs.Odd)
        self.assertTrue(error.traceback.endswith("the end\n"))
        self.assertLessEqual(len(error.traceback), 8 * 1024 + 1)

    def test_complex_return_value(self):
        result = jobs.complex_return_value.enqueue()
        self.run_worker()
        result.refresh()
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        self.assertEqual(result.errors[0].exception_class, TypeError)

    def test_large_return_values(self):
        """Too large for `result_bytes_max`, and for the cluster. A second attempt would not help."""
        self.use(result_bytes_max=1000, max_attempts=3)
        fits, too_large = jobs.big.enqueue(998), jobs.big.enqueue(999)
        self.run_worker()
        fits.refresh()
        too_large.refresh()
        self.assertEqual(fits.return_value, "x" * 998)
        self.assertEqual((too_large.status, too_large.attempts), (TaskResultStatus.FAILED, 1))
        self.assertEqual(too_large.errors[0].exception_class, ResultTooLarge)
        self.use(result_bytes_max=2**30, max_attempts=3)
        too_large = jobs.big.enqueue(256 * 1024)
        self.run_worker()
        too_large.refresh()
        self.assertEqual((too_large.status, too_large.attempts), (TaskResultStatus.FAILED, 1))
        self.assertEqual(too_large.errors[0].exception_class, ResultTooLarge)

    def test_a_failed_attempt_is_repeated(self):
        self.use(max_attempts=3)
        result = jobs.flaky.enqueue(2)
        until(lambda: self.run_worker() is not None and self.status(result.id) == "SUCCESSFUL")
        result.refresh()
        self.assertEqual((result.return_value, result.attempts), (3, 3))
        self.assertEqual(["attempt 1" in result.errors[0].traceback, "attempt 2" in result.errors[1].traceback], [True, True])
        self.assertLess(result.started_at, result.last_attempted_at)

    def test_until_max_attempts(self):
        self.use(max_attempts=2)
        result = jobs.flaky.enqueue(5)
        self.run_worker(batch=False, max_tasks=1)
        result.refresh()
        self.assertEqual((result.status, len(result.errors), result.attempts), (TaskResultStatus.READY, 1, 1))
        until(lambda: self.run_worker() is not None and self.status(result.id) != "READY")
        result.refresh()
        self.assertEqual((result.status, len(result.errors), result.attempts), (TaskResultStatus.FAILED, 2, 2))

    def test_a_redriven_task(self):
        result = jobs.failing_task.enqueue()
        self.run_worker()
        topic = tasks_topic(self.namespace, "default", 0)
        self.backend.client.call("queue.redrive", topic=topic, group=GROUP)
        self.assertEqual(self.status(result.id), "READY")
        self.run_worker()
        result.refresh()
        self.assertEqual((result.status, len(result.errors), result.attempts), (TaskResultStatus.FAILED, 1, 1))

    def test_a_purged_task(self):
        result = jobs.noop_task.enqueue()
        self.backend.client.call("queue.purge", topic=tasks_topic(self.namespace, "default", 0))
        with self.assertRaises(TaskResultDoesNotExist):
            result.refresh()

    def test_doesnt_process_different_backend(self):
        tasks = {
            **settings.TASKS,
            "other": {"BACKEND": "dss_django.tasks.DSSBackend", "OPTIONS": {"namespace": f"{self.namespace}-b"}},
        }
        tasks["default"] = {**tasks["default"], "OPTIONS": {"namespace": self.namespace}}
        with override_settings(TASKS=tasks):
            result = jobs.noop_task.using(backend="other").enqueue()
            self.run_worker()
            self.assertEqual(result.task.get_result(result.id).status, "READY")
            call_command("dss_worker", "--backend=other", batch=True, reload=False, verbosity=0)
            self.assertEqual(result.task.get_result(result.id).status, "SUCCESSFUL")

    def test_run_after(self):
        later = jobs.noop_task.using(run_after=timezone.now() + timedelta(hours=10)).enqueue()
        soon = jobs.noop_task.using(run_after=timezone.now() + timedelta(seconds=0.3)).enqueue()
        past = jobs.noop_task.using(run_after=timezone.now() - timedelta(hours=10)).enqueue()
        self.run_worker()
        self.assertEqual((self.status(later.id), self.status(past.id)), ("READY", "SUCCESSFUL"))
        until(lambda: self.run_worker() is not None and self.status(soon.id) == "SUCCESSFUL")
        self.assertEqual(self.backend.get_result(later.id), later)

    def test_later_than_a_message_can_be_hidden(self):
        later = jobs.noop_task.using(run_after=timezone.now() + timedelta(days=400))
        with mock.patch("dss_django.tasks.backend.DURATION_S_MAX", 0):
            result = later.enqueue()
        self.run_worker()
        self.assertEqual(self.backend.get_result(result.id), result)

    def order(self, *tasks, **options):
        """In which order the worker runs tasks that are all ready."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "effects"
            for text, changes in tasks:
                jobs.note.using(**changes).enqueue(str(path), text)
            self.run_worker(**options)
            return path.read_text().split()

    def test_priorities(self):
        self.use(priorities=TaskOptions().priorities)
        tasks = [(str(priority), {"priority": priority}) for priority in (0, -100, 100, -7, 3, 50)]
        self.assertEqual(self.order(*tasks), ["100", "50", "3", "0", "-7", "-100"])

    def test_the_levels_are_a_setting(self):
        self.use(priorities=[-100, 7])
        tasks = [(str(priority), {"priority": priority}) for priority in (0, 6, 7, 100)]
        self.assertEqual(self.order(*tasks), ["7", "100", "0", "6"])

    def test_the_order_of_queues(self):
        self.use(priorities=[-100, 1])
        tasks = [
            ("a", {}),
            ("b", {"queue_name": "queue-1"}),
            ("c", {"priority": 1}),
            ("d", {"priority": 1, "queue_name": "queue-1"}),
        ]
        self.assertEqual(self.order(*tasks, queue_name="queue-1,default"), ["d", "c", "b", "a"])

    def test_a_worker_that_waits_takes_by_priority(self):
        """Not in a batch: while it works, tasks of all levels come."""
        self.use(priorities=TaskOptions().priorities)
        with tempfile.TemporaryDirectory() as directory:
            path, gate = Path(directory) / "effects", Path(directory) / "gate"
            first = jobs.note_until.enqueue(str(path), "first", str(gate))
            worker = threading.Thread(target=self.run_worker, kwargs={"batch": False, "max_tasks": 5})
            worker.start()
            until(lambda: self.status(first.id) == "RUNNING")
            for priority in (0, -100, 100, 5):
                jobs.note.using(priority=priority).enqueue(str(path), str(priority))
            gate.touch()
            worker.join(PATIENCE_S)
            self.assertEqual(path.read_text().split(), ["first", "100", "5", "0", "-100"])

    def test_verbose_logging(self):
        jobs.noop_task.enqueue()
        with self.assertLogs("dss_django.tasks", "INFO") as logs:
            self.run_worker(verbosity=1, worker_id="w")
        self.assertEqual(
            [record.getMessage() for record in logs.records],
            ["Starting worker worker_id=w queues=default,queue-1", "No more tasks to run for worker_id=w - exiting gracefully."],
        )
        setUpModule()

    def test_paths_that_are_no_task_fail(self):
        for path in ("jobs.not_a_task", "missing.function", "jobs.missing"):
            with self.subTest(path):
                id = self.enqueue_path(path)
                self.run_worker()
                known = self.backend.client._run(self.backend._find(id))
                self.assertEqual(known.status, "FAILED")
                self.assertIn(
                    "ImportError" if path == "jobs.missing" else "Error" if "missing" in path else "Suspicious",
                    known.errors[0].traceback,
                )

    def test_a_message_that_is_no_task_is_dead(self):
        topic = self.backend.client.topic(tasks_topic(self.namespace, "default", 0))
        topic.publish({"not": "a task"})
        result = jobs.noop_task.enqueue()
        self.run_worker()
        self.assertEqual([one["value"] for one in topic.peek(group=GROUP, dead=True)], [{"not": "a task"}])
        self.assertEqual(self.status(result.id), "SUCCESSFUL")

    def test_worker_doesnt_exit_on_failure(self):
        result = jobs.exit_task.enqueue()
        after = jobs.noop_task.enqueue()
        self.run_worker()
        self.assertEqual((self.status(result.id), self.status(after.id)), ("FAILED", "SUCCESSFUL"))

    def test_max_tasks(self):
        results = [jobs.noop_task.enqueue() for _ in range(5)]
        for concurrency in (1, 2):
            self.run_worker(max_tasks=2, concurrency=concurrency)
            statuses = [self.status(result.id) for result in results]
            self.assertEqual(statuses.count("SUCCESSFUL"), 2 * concurrency)

    def test_takes_context(self):
        result = jobs.get_task_id.enqueue()
        self.run_worker()
        result.refresh()
        self.assertEqual(result.return_value, result.id)

    def test_context(self):
        result = jobs.check_context.enqueue(1)
        self.run_worker()
        self.assertEqual(self.status(result.id), "SUCCESSFUL")

    def test_a_receiver_that_fails(self):
        def receive(**kwargs):
            raise ValueError("the receiver failed")

        task_finished.connect(receive)
        try:
            results = [jobs.noop_task.enqueue(), jobs.failing_task.enqueue()]
            self.run_worker()
        finally:
            task_finished.disconnect(receive)
        self.assertEqual([self.status(result.id) for result in results], ["SUCCESSFUL", "FAILED"])


class OneEffectTests(TasksMixin, SimpleTestCase):
    """The result and the acknowledgement are one step."""

    def take(self, visibility=2.0):
        topic = self.backend.store.topic("default", 0)
        (message,) = self.backend.client._run(topic.consume(GROUP, visibility=visibility, consumer="late"))
        return message

    def test_a_worker_that_was_too_late_leaves_no_result(self):
        self.use(max_attempts=3)
        result = jobs.echo.enqueue("right")
        store, run = self.backend.store, self.backend.client._run
        late = self.take()
        known = run(self.backend._find(result.id))
        self.assertEqual((known.status, known.worker_ids), ("RUNNING", ["late"]))
        until(lambda: self.status(result.id) == "READY")
        self.run_worker(worker_id="other")
        known.value, known.finished_ms = "wrong", 1
        self.assertFalse(run(store.succeed(late, known)))
        result.refresh()
        self.assertEqual((result.return_value, result.worker_ids), ([["right"], {}], ["lost", "other"]))
        self.assertEqual(result.errors[0].exception_class, WorkerLost)

    def test_while_another_worker_has_it(self):
        self.use(max_attempts=3)
        result = jobs.echo.enqueue()
        store, run = self.backend.store, self.backend.client._run
        late = self.take()
        known = run(self.backend._find(result.id))
        until(lambda: self.status(result.id) == "READY")
        self.take(visibility=60.0)
        with self.assertRaises(StaleReceipt):
            run(store.succeed(late, known))
        with self.assertRaises(StaleReceipt):
            run(store.fail(late, known, None))
        self.assertEqual(self.status(result.id), "RUNNING")

    def test_no_room_for_results(self):
        """A task whose result cannot be stored is not run again."""
        jobs.noop_task.enqueue()
        self.run_worker()
        self.backend.client.call("queue.topic", topic=f"{self.namespace}/results", max_bytes=1)
        with tempfile.TemporaryDirectory() as directory, mock.patch("dss_django.tasks.store.NO_ROOM_S", 0.6):
            path = Path(directory) / "effects"
            result = jobs.note.enqueue(str(path), "once")
            failed = jobs.failing_task.enqueue()
            with mock.patch("dss_django.tasks.store.Store.prepare_results", new=mock.AsyncMock()):
                self.run_worker()
                self.run_worker()
            self.assertEqual(path.read_text(), "once\n")
        with self.assertRaises(TaskResultDoesNotExist):
            result.refresh()
        failed.refresh()
        self.assertIn("not kept", failed.errors[0].traceback)

    def test_results_end_after_their_retention(self):
        self.use(result_retention=1)
        result = jobs.noop_task.enqueue()
        self.run_worker()
        until(lambda: self.is_gone(result))

    def is_gone(self, result):
        try:
            result.refresh()
        except TaskResultDoesNotExist:
            return True
        return False

    def test_the_settings_of_topics(self):
        """What an operator has set besides stays, except for what the state of tasks needs."""
        topic = tasks_topic(self.namespace, "default", 0)
        self.backend.client.call("queue.topic", topic=topic, max_bytes=10_000_000, dead_letter_topic=f"{self.namespace}-dead")
        self.use(max_attempts=7, result_retention=100)
        jobs.noop_task.enqueue()
        self.run_worker()
        found = self.backend.client.topic(topic).stats()["settings"]
        self.assertEqual((found["max_bytes"], found["max_attempts"], found["retention_ms"]), (10_000_000, 7, 0))
        self.assertEqual(found["dead_letter_topic"], "", "tasks that are dead would not be found there")
        found = self.backend.client.topic(f"{self.namespace}/results").stats()["settings"]
        self.assertEqual((found["retention_ms"], found["dedup_window_ms"]), (100_000, 100_000))

    def forget(self, *topics):
        for topic in topics:
            self.backend.client.call("queue.topic_delete", topic=topic)

    def settings_of(self, topic):
        found = self.backend.client.topic(topic).stats()["settings"]
        return found["max_attempts"], found["retention_ms"], found["dedup_window_ms"]

    def test_a_deleted_topic_comes_back_with_its_settings(self):
        self.use(max_attempts=7, result_retention=100)
        tasks, results = tasks_topic(self.namespace, "default", 0), f"{self.namespace}/results"
        first = jobs.noop_task.enqueue()
        self.run_worker()
        before = self.settings_of(tasks), self.settings_of(results)
        self.forget(tasks, results)
        jobs.noop_task.enqueue()
        self.assertEqual(self.settings_of(tasks), before[0], "as the task was enqueued")
        self.run_worker()
        self.assertEqual((self.settings_of(tasks), self.settings_of(results)), before)
        with self.assertRaises(TaskResultDoesNotExist):
            first.refresh()

    def test_a_worker_prepares_deleted_topics(self):
        self.use(max_attempts=7, priorities=(-100,))
        topic = tasks_topic(self.namespace, "default", -100)
        worker = TaskWorker(self.backend, ["default"], "w")
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            until(lambda: worker._loop)
            result = jobs.noop_task.enqueue()
            until(lambda: self.status(result.id) == "SUCCESSFUL")
            before = self.settings_of(topic)
            self.forget(topic)
            # Not with `enqueue`, which would prepare the topic itself.
            self.backend.client.topic(topic).publish("no task")
            until(lambda: self.settings_of(topic) == before)
        finally:
            worker.stop()
            thread.join()


class ProcessTests(TasksMixin, SimpleTestCase):
    """Workers that are real processes."""

    options = {"max_attempts": 3, "visibility": 3.0}

    def setUp(self):
        super().setUp()
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.path = self.directory / "effects"
        self.path.touch()

    def start(self, *arguments):
        environment = {**os.environ, "DSS_TASK_OPTIONS": json.dumps(self.backend.options)}
        environment["PYTHONPATH"] += f"{os.pathsep}{self.directory}"
        command = [sys.executable, "-m", "django", "dss_worker", "--no-reload", *arguments]
        log = (self.directory / "log").open("ab")
        self.addCleanup(log.close)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def log(self):
        return (self.directory / "log").read_text()

    def test_a_killed_worker(self):
        """kill -9 in the middle of a task: another worker runs it again, and there is one result."""
        result = jobs.slow_the_first_time.enqueue(str(self.path), 600)
        first = self.start("--worker-id=first")
        until(self.path.read_text)
        result.refresh()
        self.assertEqual((result.status, result.worker_ids), (TaskResultStatus.RUNNING, ["first"]))
        second = self.start("--worker-id=second", "--max-tasks=1")
        first.send_signal(signal.SIGKILL)
        self.assertEqual(second.wait(PATIENCE_S), 0, self.log())
        result.refresh()
        self.assertEqual(result.status, TaskResultStatus.SUCCESSFUL)
        self.assertEqual((result.return_value, result.attempts), (second.pid, 2))
        self.assertEqual(result.worker_ids, ["lost", "second"])
        self.assertEqual(result.errors[0].exception_class, WorkerLost)
        self.assertEqual(
            self.path.read_text().split("\n"), [f"begun {first.pid}", f"begun {second.pid}", f"ended {second.pid}", ""]
        )

    @tag("once")
    def test_a_task_longer_than_the_visibility(self):
        """The worker keeps it. SIGTERM lets it finish, and takes no further one."""
        result = jobs.note.enqueue(str(self.path), "once", 4.0)
        other = jobs.noop_task.enqueue()
        worker = self.start()
        self.start("--queue-name=queue-1").terminate()
        until(self.path.read_text)
        worker.terminate()
        self.assertEqual(worker.wait(PATIENCE_S), 0, self.log())
        result.refresh()
        self.assertEqual((result.status, result.attempts), (TaskResultStatus.SUCCESSFUL, 1))
        self.assertEqual(self.path.read_text(), "once\n")
        self.assertEqual(self.status(other.id), "READY")

    @tag("once")
    def test_a_second_signal(self):
        """The task goes back to the queue, and the attempt does not count."""
        result = jobs.note.enqueue(str(self.path), "begun", 600)
        worker = self.start()
        until(self.path.read_text)
        worker.send_signal(signal.SIGINT)
        until(lambda: "shutting down gracefully" in self.log())
        worker.send_signal(signal.SIGINT)
        self.assertEqual(worker.wait(PATIENCE_S), 0, self.log())
        known = self.backend.get_result(result.id)
        self.assertEqual((known.status, known.attempts, known.errors), (TaskResultStatus.READY, 0, []))

    @tag("once")
    def test_reload(self):
        """The code of a task changes while it runs: it goes back to the queue, and the new code runs it."""
        self.use(visibility=600)
        module = self.directory / "changing_jobs.py"
        module.write_text("from jobs import note, task\n\n@task()\ndef job(path):\n    note.func(path, 'old', 600)\n")
        id = self.enqueue_path("changing_jobs.job", str(self.path))
        worker = self.start("--reload", "--worker-id=reloading")
        until(self.path.read_text)
        module.write_text(module.read_text().replace("'old', 600", "'new'"))

        def has_the_new_code():
            # The reloader may not have looked at the file before it changed.
            os.utime(module)
            time.sleep(0.5)
            return "new" in self.path.read_text()

        until(has_the_new_code)
        until(lambda: self.status(id) == "SUCCESSFUL")
        known = self.backend.client._run(self.backend._find(id))
        self.assertEqual((known.worker_ids, known.errors), (["reloading"], []))
        worker.terminate()
        worker.wait(PATIENCE_S)

    @tag("once")
    def test_workers_share_the_tasks(self):
        results = [jobs.note.enqueue(str(self.path), str(number), 0.05) for number in range(10)]
        workers = [self.start("--batch", "--concurrency=2", f"--worker-id=w{number}") for number in range(2)]
        for worker in workers:
            self.assertEqual(worker.wait(PATIENCE_S), 0, self.log())
        self.assertEqual(sorted(map(int, self.path.read_text().split())), list(range(10)))
        self.assertTrue(all(self.status(result.id) == "SUCCESSFUL" for result in results))
