"""Entropy coding, the ``.lic`` file, and measurements of both.

``encode(image, network) -> bytes`` and ``decode(data, network) -> array`` are the short way;
`lichen.codec.container.Container` the one for many images.
"""

from lichen.codec.container import decode as decode
from lichen.codec.container import encode as encode
