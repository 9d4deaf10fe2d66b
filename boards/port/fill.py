"""What fills a transform at run time: words, and what both ends have to agree on."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from lichen.hw.stage.folding import Folding
from lichen.hw.stage.loaded import StageTemplate, template_of
from lichen.hw.stage.pipeline import Pipeline

WORD_BITS, ADDRESS_START = 64, 40
"""Of a word: the data in bits 0 .. 35, the address from bit 40."""

WORD_BYTES = WORD_BITS // 8

MAP_BYTES = 4

ORDER = 1
"""Of what words hold where: another number whenever a transform's words would change though its
stages, folding and places do not."""


def words_of(writes: Iterable[tuple[int, int]]) -> list[int]:
    """Addresses and data as words of `WORD_BITS`."""
    return [address << ADDRESS_START | data for address, data in writes]


def bytes_of(words: Iterable[int]) -> bytes:
    """Words one after the other, each lowest byte first."""
    return b"".join(word.to_bytes(WORD_BYTES, "little") for word in words)


def checksum(words: Iterable[int]) -> int:
    """The CRC-32 of the bytes of words."""
    return zlib.crc32(bytes_of(words))


@dataclass(frozen=True, kw_only=True)
class Fill:
    """What a transform takes.

    Attributes
    ----------
    templates : tuple of StageTemplate
    folding : Folding
    words : int
        How many fill it.
    map : bytes
        First of the SHA-256 of all that the words follow from but the constants themselves.
    """

    templates: tuple[StageTemplate, ...]
    folding: Folding
    words: int
    map: bytes

    @classmethod
    def of(cls, pipeline: Pipeline) -> Fill:
        """Of a pipeline that is filled at run time; ValueError for another one."""
        found = [template_of(stage) for stage in pipeline.transform.stages]
        templates = tuple(template for template in found if template is not None)
        if len(templates) < len(found):
            raise ValueError("the constants of the pipeline stand in its gateware")
        places = list(pipeline.places.values())
        agreed = {
            "order": ORDER,
            "stages": [
                template.model_dump(mode="json", exclude={"name"}) for template in templates
            ],
            "folding": [stage.model_dump(mode="json") for stage in pipeline.folding.stages],
            "places": [asdict(place) for place in places],
        }
        digest = hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).digest()
        return cls(
            templates=templates,
            folding=pipeline.folding,
            words=sum(place.depth * place.chunks for place in places),
            map=digest[:MAP_BYTES],
        )
