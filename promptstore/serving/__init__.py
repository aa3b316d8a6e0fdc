"""The HTTP server: one frozen model, any prompt, promotions followed while it runs."""
