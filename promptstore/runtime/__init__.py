"""Prompts on the device by digest, batches that mix tasks, and the thread that owns the device."""
