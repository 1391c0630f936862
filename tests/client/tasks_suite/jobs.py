"""Tasks for the tests."""

import os
import sys
import time
from importlib.util import find_spec

if find_spec("django.tasks"):
    from django.tasks import task
else:
    from django_tasks import task


def effect(path, text):
    """One line in a file, written by one call."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


@task()
def noop_task(*args, **kwargs):
    pass


@task()
async def noop_task_async(*args, **kwargs):
    pass


@task()
def calculate_meaning_of_life():
    return 42


@task()
def echo(*args, **kwargs):
    return [list(args), kwargs]


@task()
def failing_task():
    raise ValueError("This task failed")


class Odd(Exception):
    pass


@task()
def odd_error():
    raise Odd("a" * 50_000 + "the end")


@task()
def error_that_is_no_utf8():
    raise ValueError("file \udce9")


@task()
def complex_exception():
    raise ValueError(ValueError("This task failed"))


@task()
def complex_return_value():
    return lambda: True


@task()
def exit_task():
    sys.exit(1)


@task()
def big(size):
    return "x" * size


@task()
def sleep_for(seconds):
    time.sleep(seconds)


@task(takes_context=True)
def get_task_id(context):
    return context.task_result.id


@task(takes_context=True)
def check_context(context, attempt):
    assert context.attempt == attempt
    assert context.task_result.status == "RUNNING"
    assert context.task_result.args == [attempt]


@task(takes_context=True)
def flaky(context, failures):
    if context.attempt <= failures:
        raise ValueError(f"attempt {context.attempt}")
    return context.attempt


@task()
def note(path, text, seconds=0.0):
    """Leave a line, then take some time."""
    effect(path, text)
    time.sleep(seconds)
    return text


@task()
def note_until(path, text, gate):
    """Leave a line, then wait for a file."""
    effect(path, text)
    while not os.path.exists(gate):
        time.sleep(0.01)


@task(takes_context=True)
def slow_the_first_time(context, path, seconds):
    effect(path, f"begun {os.getpid()}")
    if context.attempt == 1:
        time.sleep(seconds)
    effect(path, f"ended {os.getpid()}")
    return os.getpid()


@task()
def enqueue_another(path):
    note.enqueue(path, "another")


not_a_task = time.sleep
