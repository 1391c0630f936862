"""A result backend for Celery on the cluster's cache: `result_backend = "dss://127.0.0.1:8101,127.0.0.1:8102"`."""
