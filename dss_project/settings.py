"""Django's settings. What an operator may change stands in `config.py`; this file only turns it into Django's words."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dss_project.config import NodeConfig
from dss_project.secret_files import read_or_make

NODE = NodeConfig.from_env()
DATA_DIR = Path(NODE.data_dir)

DEBUG = NODE.debug
# Nothing is written here: the node command keeps the key, so that other commands leave no files behind.
SECRET_KEY = NODE.secret_key or read_or_make(DATA_DIR / "secret-key")
# The outer application checks the Host header of everything (dss_api/host_check.py), IP addresses included, which a list cannot say.
ALLOWED_HOSTS = ["*"]

INSTALLED_APPS = [
    "dss_console",
    "dss_project",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_prometheus",
    "dss_raft.django_app",
    "dss_locks.django_app",
    "dss_queue.django_app",
    "dss_cache.django_app",
    # local clusters for development; not part of the wheel
    *(["dss_dev"] if find_spec("dss_dev") else []),
]

# Pages for people only: the API's JSON goes past all of this (dss_api/json_fast_path.py).
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "dss_project.urls"
APPEND_SLASH = True

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# Users, sessions, the audit log and the cache's embedded memory. Raft's log is a file of its own.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA_DIR / "django.sqlite3",
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            # FULL: a value that left the replicated log for this memory must survive a power cut.
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# Browsers share cookies between ports: without names of their own, three nodes on one machine log each other's users out.
SESSION_COOKIE_NAME = f"dss_session_{NODE.rpc_port}"
CSRF_COOKIE_NAME = f"dss_csrf_{NODE.rpc_port}"
SESSION_COOKIE_SAMESITE = "Lax"
LOGIN_URL = "admin:login"

LANGUAGE_CODE = "en-us"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "/static/"

# Control and notifications inside this process; Raft's traffic has its own links.
# A machine may be suspended between the sending of a control message and its arrival; by default it would be dropped after a minute.
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"expiry": 86_400}}}

# The node command sets up logging (logs.py).
LOGGING_CONFIG = None

PROMETHEUS_EXPORT_MIGRATIONS = False

# What a call goes through is said in dss_console.browsable_api.OperationView itself.
REST_FRAMEWORK = {
    "DEFAULT_SCHEMA_CLASS": "dss_console.openapi_schema.OperationSchema",
    # `?format=` would be one more parameter that the API does not know.
    "URL_FORMAT_OVERRIDE": None,
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Distributed Sync System",
    "DESCRIPTION": "Locks, queues and a coherent cache over Raft. Every node serves the whole API.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    # Served by the node itself: no page needs the internet.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "DEFAULT_GENERATOR_CLASS": "dss_console.openapi_schema.ApiSchemaGenerator",
    "POSTPROCESSING_HOOKS": [],
    "ENABLE_DJANGO_DEPLOY_CHECK": False,
}
