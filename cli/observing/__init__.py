"""`gaggle observe` and `gaggle log-level`: Prometheus and Zipkin beside a mesh, and what its services log."""
