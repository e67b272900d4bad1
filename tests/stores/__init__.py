"""State stores other than the default, swapped by YAML alone (`make test-brokers`)."""
