"""What a person runs: one file per workflow, composed of tasks; the command line."""
