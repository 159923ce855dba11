"""Where it runs: connecting to Ray, submitting jobs, Kubernetes manifests, schedules."""
