"""The HTTP server: micro-batched predictions of the champion, reloaded when its alias moves."""
