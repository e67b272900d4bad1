"""Realtime: what happens to a user's things, on one stream a client, over gRPC and as a WebSocket."""
