"""Variational autoencoders on MNIST: train, evaluate at β = 1, draw; see `vae/train.py`."""
