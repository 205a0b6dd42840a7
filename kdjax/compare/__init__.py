"""Two runs, stage by stage: accuracy over the seeds, and what differs in settings."""
