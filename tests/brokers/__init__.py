"""The conformance suite of brokers: the same mesh and the same tests on every component set (`make test-brokers`)."""
