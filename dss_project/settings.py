"""Django's settings. The settings for operators are in `config.py`; this file derives Django's from them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dss_project import access
from dss_project.config import NodeConfig

NODE = NodeConfig.from_env()
DATA_DIR = Path(NODE.data_dir)

DEBUG = NODE.debug
SECRET_KEY, *SECRET_KEY_FALLBACKS = access.django_keys(NODE)
# dss_api/host_check.py checks the Host header before Django does. It accepts any IP address, which this list cannot express.
ALLOWED_HOSTS = ["*"]

INSTALLED_APPS = [
    "dss_console",
    "dss_project",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    *(["django_prometheus"] if NODE.django_metrics else []),
    "dss_raft.django_app",
    "dss_locks.django_app",
    "dss_queue.django_app",
    "dss_cache.django_app",
    # Local clusters for development; not part of the wheel.
    *(["dss_dev"] if find_spec("dss_dev") else []),
]

# `dss_project/deploy_checks.py` says the same with the names of our settings, and looks at more.
SILENCED_SYSTEM_CHECKS = [
    "security.W004",  # HSTS: dss.W010, where there is TLS
    "security.W005",  # HSTS of subdomains: a node has none, and does not decide for those of its host name
    "security.W008",  # redirects to HTTPS: a node that speaks TLS has no port without it, and a proxy has its own
    "security.W009",  # the secret key: the generated one has 264 bits in fewer than 50 characters; a given one: dss.W004
    "security.W010",  # cookies: as W012
    "security.W011",  # cookies: as W012
    "security.W012",  # cookies: dss.W009, where there is TLS
    "security.W016",  # as W012
    "security.W018",  # DEBUG: dss.W014
    "security.W021",  # browsers' lists of HTTPS sites: as W005
    *NODE.silenced_checks,
]

# For pages only: the JSON fast path (dss_api/json_fast_path.py) bypasses the middleware.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
if NODE.django_metrics:
    MIDDLEWARE = [
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        *MIDDLEWARE,
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

# Rows for the users, the admin's log and the cache's embedded backing store. Raft's log is a separate file.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA_DIR / "django.sqlite3",
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            # FULL: the replicated log drops a value that was written back here, so it must survive a power cut.
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

AUTHENTICATION_BACKENDS = ["dss_raft.django_app.backend.ClusterUsers"]
# Any node can check a session: it is a signed cookie, and nothing is stored. It proves the user's generation, which ends it everywhere.
SESSION_ENGINE = "dss_raft.django_app.sessions"
SESSION_COOKIE_AGE = 12 * 3600
# By default, long messages go into the session, which would be signed again for them, and may become too large for a cookie.
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
SESSION_COOKIE_NAME = f"dss_session_{access.cookie_suffix((SECRET_KEY, *SECRET_KEY_FALLBACKS))}"
CSRF_COOKIE_NAME = f"dss_csrf_{access.cookie_suffix((SECRET_KEY, *SECRET_KEY_FALLBACKS))}"
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = NODE.secure_cookies or NODE.tls is not None
# Behind a proxy, `dss_api/proxies.py` gives Django the client's scheme, host and address.
CSRF_TRUSTED_ORIGINS = list(NODE.csrf_trusted_origins)
SECURE_HSTS_SECONDS = NODE.hsts_seconds
LOGIN_URL = "admin:login"

LANGUAGE_CODE = "en-us"
USE_I18N = False
# With seconds, to compare with logs.
DATETIME_FORMAT = r"Y-m-d H:i:s \U\T\C"
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "/static/"

# For control messages inside this process; Raft's messages travel on the peer links.
# By default a message expires after a minute, which is too short if the machine is suspended before it arrives.
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"expiry": 86_400}}}

# The node command sets up logging (logs.py).
LOGGING_CONFIG = None

PROMETHEUS_EXPORT_MIGRATIONS = False

# dss_console.browsable_api.OperationView sets its own parsers, renderers and permissions.
REST_FRAMEWORK = {
    "DEFAULT_SCHEMA_CLASS": "dss_console.openapi_schema.OperationSchema",
    # The API has no parameter `format`.
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
    # Served by the node itself, without the internet.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # Otherwise the page asks a validator on the internet.
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "validatorUrl": None},
    "DEFAULT_GENERATOR_CLASS": "dss_console.openapi_schema.ApiSchemaGenerator",
    "POSTPROCESSING_HOOKS": [],
    "ENABLE_DJANGO_DEPLOY_CHECK": False,
}
