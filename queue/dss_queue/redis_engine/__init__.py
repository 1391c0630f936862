"""The engine `redis` of topics: messages in Valkey or Redis instead of the replicated log.

See docs/decisions/0199-a-second-engine-for-topics.md.
"""
