"""What cameras write where a caption belongs: the stock descriptions of EXIF's ImageDescription, and their own names.

Blog software takes ImageDescription for alt text and caption, so that pages are full of them. The descriptions are those that two
programs for collections of photographs leave out for the same reason (iNaturalist, app/models/local_photo.rb, BRANDED_DESCRIPTIONS;
PhotoPrism, internal/meta/sanitize.go), and "MAKER DIGITAL CAMERA" for every maker. The names are Make and Model as EXIF has them; the
patterns were written after the list of LibRaw (src/tables/cameralist.cpp). Telephones are not among them: people show those.
"""

import re

_MAKERS = (
    "agfaphoto", "benq", "canon", "casio", "concord", "epson", "fuji", "fujifilm", "ge", "hp", "jenoptik", "kodak", "konica minolta",
    "kyocera", "leica", "lg", "medion", "minolta", "mustek", "nikon", "olympus", "panasonic", "pentax", "polaroid", "praktica", "ricoh",
    "rollei", "samsung", "sanyo", "sigma", "sony", "toshiba", "traveler", "vivitar", "yashica",
)  # fmt: skip
_DESCRIPTIONS = frozenset(
    (
        "digital camera", "digital still camera", *(f"{maker} digital camera" for maker in _MAKERS), "kodak digital still camera",
        "moultrie digital game camera", "samsung camera pictures", "sony dsc", "exif_jpeg_picture", "oznor", "oznorwo", "rhdr", "hdrpl",
        "fbthdr", "btfhdr", "btfmdn", "frontbhdp", "fshbty",
    )
)  # fmt: skip

_SERIES = (
    "eos", "powershot", "digital ixus", "ixus", "ixy", "coolpix", "finepix", "cyber-shot", "cybershot", "lumix", "easyshare", "pixpro",
    "exilim", "camedia", "stylus", "optio", "dimage", "dynax", "maxxum", "digimax", "caplio",
)  # fmt: skip
_CODE = r"(?!\d+mm)(?:[a-z]{1,4}-)?[a-z]{0,6}\d{1,4}(?:\.\d)?[a-z0-9_]{0,10}"  # D90, DMC-GX8, 5D, E-M1MarkII; no lens
_MORE = rf"(?:[ /-]{{1,3}}(?:{_CODE}|[a-z]{{1,2}}|iii|mark|digital|rebel|kiss|elph|xti|xsi|zoom|pro|plus|mini|wide|camera)){{0,6}}"
_NAME = re.compile(
    # Series that are cameras' whoever writes them, with or without their maker.
    rf"(?:(?:{'|'.join(_MAKERS)}) ){{0,2}}(?:{'|'.join(_SERIES)})[ -]+(?:elph |digital )?(?:{_CODE}|[rm]p?|rebel|kiss){_MORE}"
    r"|(?:(?:sony|panasonic|casio) )?(?:dmc|dc|dsc|dslr|slt|ilce|ilca|nex|ex|qv)-[a-z]{0,3}\d{1,4}[a-z0-9]{0,6}"
    # Makers of little else: their name and a code.
    r"|(?:(?:nikon(?: corporation)?|leica|olympus|fuji(?:film)?|pentax|hasselblad|konica minolta|minolta|kodak(?: dcs)?|sigma) ){1,2}"
    rf"(?:(?=[a-z])(?:gfx |pro )?{_CODE}|\*ist(?: \w{{1,3}})?){_MORE}"
    # Makers of much else, or of codes that are numbers: the codes of their cameras.
    r"|nikon (?:z ?\d\w{0,4}|1 [ajvs]\d)|sony (?:alpha|a)[ -]?\d{1,4}[a-z]{0,3}(?: i{1,3}v?)?"
    rf"|samsung (?:nx|wb|st|pl|es)\d{{1,4}}[a-z0-9]{{0,4}}|ricoh gr{_MORE}|<(?:kenox|digimax) [^<>]{{0,30}}>"
)
_CODED = (
    "dmc-", "dc-", "dsc-", "dslr-", "slt-", "ilce-", "ilca-", "nex-", "ex-", "qv-", "<kenox", "<digimax", "hasselblad",
)  # fmt: skip
_STARTS = frozenset(text[:3] for text in (*(f"{maker} " for maker in _MAKERS), *_DESCRIPTIONS, *_SERIES, *_CODED))
"""Most captions begin otherwise, and are not looked at any further."""


def is_camera_text(caption: str) -> bool:
    """Whether a whole caption, casefolded and without punctuation around it, is what a camera calls itself or its pictures."""
    return caption[:3] in _STARTS and (caption in _DESCRIPTIONS or _NAME.fullmatch(caption) is not None)
