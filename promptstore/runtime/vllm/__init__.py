"""Answers through a vLLM server: prompts go there as input embeddings."""
