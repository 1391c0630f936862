"""A project that has only tasks. DSS_URLS and DSS_TOKEN name the cluster, DSS_NAMESPACE the topics."""

import json
import os
from importlib.util import find_spec

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = ["dss_django"]
if not find_spec("django.tasks"):
    INSTALLED_APPS.append("django_tasks")
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
#: short times and few topics, for tests
OPTIONS = {"namespace": os.environ.get("DSS_NAMESPACE", "django"), "max_attempts": 1, "backoff": 0.05, "priorities": [-100, 0]}
#: of the workers that tests start
OPTIONS |= json.loads(os.environ.get("DSS_TASK_OPTIONS", "{}"))
TASKS = {
    "default": {"BACKEND": "dss_django.tasks.DSSBackend", "QUEUES": ["default", "queue-1"], "OPTIONS": OPTIONS},
    "immediate": {
        "BACKEND": f"{'django.tasks' if find_spec('django.tasks') else 'django_tasks'}.backends.immediate.ImmediateBackend"
    },
}
