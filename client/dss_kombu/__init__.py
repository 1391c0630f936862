"""A kombu transport, and so a broker for Celery: `dss://127.0.0.1:8101,127.0.0.1:8102//`. docs/how-to/celery.md shows how to use it.

kombu knows transports by a table of its own, and not by entry points. Importing this package adds `dss` to it. kombu itself imports the
package with its serializers, because one of them has an entry point here; Celery loads those before it connects.
"""

from dss_kombu import registration as registration
