"""The whole mesh on one machine: stores, Dapr's control plane, and every service beside its sidecar."""
