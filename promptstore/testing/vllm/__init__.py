"""vLLM for tests: a fake that speaks its API over HTTP, the real one, and the contract that both keep."""
