"""The part of DejaVu Sans that figures are set in. Into each PDF go the glyphs that it shows: to cut them from the whole
font takes longer than to draw it, and from a part of it a tenth as long."""

from __future__ import annotations

import io
import zlib
from functools import cache
from pathlib import Path

import matplotlib
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib import font_manager

from metapt.files import write_bytes_atomically

WHOLE, PART = "DejaVu Sans", "metapt Sans"
WEIGHTS = ("normal", "bold")
# Latin, Greek, punctuation, arrows and signs; any other character is taken from the whole font
CHARACTERS = ((0x20, 0x250), (0x370, 0x400), (0x2000, 0x2070), (0x2190, 0x2270))
FAMILIES, FULL_NAMES = (1, 16), (4, 6)  # names in the font's table of names


@cache
def families() -> list[str]:
    """What text of a PDF is set in: the part, and the whole for what it lacks. The part is kept in matplotlib's cache."""
    made_by = f"{matplotlib.__version__}-{zlib.crc32(Path(__file__).read_bytes()):08x}"
    for weight in WEIGHTS:
        file = Path(matplotlib.get_cachedir(), f"metapt-{made_by}-{weight}.ttf")
        if not file.exists():
            write_bytes_atomically(file, _cut(weight))
        font_manager.fontManager.addfont(file)
    return [PART, WHOLE]


def _cut(weight: str) -> bytes:
    """A font file with the glyphs of CHARACTERS, without rules for scripts that have none there, and a name of its own."""
    font = TTFont(font_manager.findfont(font_manager.FontProperties(family=WHOLE, weight=weight)))
    options = subset.Options(glyph_names=True, notdef_outline=True, name_IDs=["*"])
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB"]
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=[code for first, end in CHARACTERS for code in range(first, end)])
    cutter.subset(font)
    for name in font["name"].names:
        if name.nameID in FAMILIES:
            name.string = PART
        elif name.nameID in FULL_NAMES:
            name.string = str(name).replace("DejaVu", "metapt")
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()
