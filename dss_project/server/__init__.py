"""Runs the ASGI application and Raft in one event loop, under Daphne or uvicorn, from start to a clean stop."""
