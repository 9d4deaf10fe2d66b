"""The link between a host and the pipeline, the device's end and the protocol."""
