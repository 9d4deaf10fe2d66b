"""One self-contained page about a network, a build, or two of them."""
