"""What stands in for the gradient: momentum estimators, and how their buffers are carried between steps."""
