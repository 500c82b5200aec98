"""Which libraries decode pictures here: another one may make other pixels of the same JPEG."""

from __future__ import annotations

from PIL import features


def decoder_versions() -> dict[str, str]:
    """Return the versions of Pillow and of the JPEG and PNG libraries that it uses; one that it lacks is ``none``."""
    turbo = features.version_feature("libjpeg_turbo") if features.check_feature("libjpeg_turbo") else None
    jpeg = f"libjpeg-turbo {turbo}" if turbo else features.version_codec("jpg") or "none"
    return {"pillow": features.version_module("pil") or "unknown", "jpeg": jpeg, "png": f"zlib {features.version_codec('zlib') or 'none'}"}
