"""Fitting the context models of a network to the latents that it makes of images."""
