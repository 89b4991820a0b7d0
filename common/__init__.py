"""What the three experiments share: settings, data, the run folder, the training loop, figures. Knows no task."""
