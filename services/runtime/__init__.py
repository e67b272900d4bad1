"""The library that every service stands on: bootstrap, call pipeline, sidecar, state, outbox, identity, telemetry."""
