"""Many runs of one script, here or on a Ray cluster: `python -m common.sweep FILE.yaml`."""
