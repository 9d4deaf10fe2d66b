"""A pipeline as bytes: what enters and leaves a transform, whatever the link."""
