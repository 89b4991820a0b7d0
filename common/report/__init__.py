"""One page of everything a results folder holds: `python -m common.report RESULTS`."""
