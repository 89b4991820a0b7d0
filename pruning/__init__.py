"""Sensitivity scan, fine-grained magnitude pruning and fine-tuning of VGG11-BN (Han et al. 2015)."""
