"""Which task an image belongs to, with nothing learned that could forget."""
