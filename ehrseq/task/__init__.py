"""Tasks: which outcomes, for whom, at which times, and what may be seen then."""
