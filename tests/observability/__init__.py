"""What an operator sees of a mesh: traces, metrics, logs, the dashboard."""
