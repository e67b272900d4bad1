"""Reminds of tasks, on Dapr's Jobs API."""
