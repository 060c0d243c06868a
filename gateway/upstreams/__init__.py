"""The servers behind the gateway: the student's replicas and the chain of teachers."""
