"""One step: groups, plan, gradient checks, and the only code that moves weights."""
