"""Operations and their entry points: DRF views for people, the JSON fast path and the WebSocket for programs."""
