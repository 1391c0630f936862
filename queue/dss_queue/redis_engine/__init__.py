"""The engine `redis` of topics: messages in Valkey or Redis instead of the replicated log. See queue/README.md."""
