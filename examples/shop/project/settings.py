"""A shop on the Distributed Sync System: its cache, sessions, locks and tasks. DSS_URLS names the nodes."""

import os
from importlib.util import find_spec
from pathlib import Path

BASE_DIR = Path(__file__).parents[1]
DATA_DIR = Path(os.environ.get("SHOP_DATA", BASE_DIR / ".data"))

DEBUG = True
SECRET_KEY = "only for this example"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
ROOT_URLCONF = "project.urls"
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "dss_django",
    "store",
]
if not find_spec("django.tasks"):
    # Django 5.2
    INSTALLED_APPS.append("django_tasks")
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request", "store.cart.context"]},
    }
]
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA_DIR / "shop.sqlite3",
        # The server and the worker write to the same file.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
    }
}

# -------------------------------------------------- what the cluster does

#: without it, DSS_URLS and DSS_TOKEN of the environment
# DSS = {"URLS": ["http://127.0.0.1:8101", "http://127.0.0.1:8102", "http://127.0.0.1:8103"], "TOKEN": "…"}
CACHES = {
    "default": {
        "BACKEND": "dss_django.cache.DSSCache",
        "LOCATION": os.environ.get("DSS_URLS", "http://127.0.0.1:8101"),
        "OPTIONS": {"namespace": "shop"},
    }
}
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
SESSION_COOKIE_NAME = "shop_session"
TASKS = {
    "default": {
        "BACKEND": "dss_django.tasks.DSSBackend",
        "QUEUES": ["default", "mails"],
        "OPTIONS": {"namespace": "shop", "visibility": 10},
    }
}

# Mails are files.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = DATA_DIR / "mails"
DEFAULT_FROM_EMAIL = "Quorum Goods <shop@example.com>"
