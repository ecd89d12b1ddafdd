"""Networks, hazards, losses, baselines and their artifact."""
