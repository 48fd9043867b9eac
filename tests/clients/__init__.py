"""Real clients, pinned and unmodified, against the real gateway: base URL and key are all they are given."""
