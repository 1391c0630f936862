"""A driver for tooz: `tooz.coordination.get_coordinator("dss://127.0.0.1:8101,127.0.0.1:8102", b"member-1")`. See docs/how-to/tooz.md."""
