"""From a design to a bitstream: tools, reports, records."""
