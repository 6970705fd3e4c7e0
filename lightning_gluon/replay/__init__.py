"""A training step that runs again at other weights and leaves no trace: the one place for Lightning's insides."""
