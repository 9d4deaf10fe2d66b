"""What a stage of a transform is in gateware, and the pipeline they make."""
