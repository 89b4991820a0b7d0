"""What the three experiments share: settings, data, the run folder, the training loop, figures. Knows no task."""

import common.stopping  # first of all: a signal ends a script in one line while it imports the rest

import common.cores  # noqa: F401 — second: it looks how busy the machine is while the rest is imported
