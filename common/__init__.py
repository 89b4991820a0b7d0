"""What the three experiments share: settings, data, the run folder, the training loop, figures. Knows no task."""

import common.stopping  # noqa: F401 — first of all: a signal ends a script in one line while it imports the rest
