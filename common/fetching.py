"""Files from the network: fetched whole, with a bar, and refused in words. Start reading at `fetched`."""

import http.client
import urllib.request

from common.parameters import ParameterError
from common.progress import Progress
from common.run_folder import describe

PART = 2**18  # bytes that are read at once


def fetched(url: str, name: str, flag: str, shown: str | None = None) -> bytes:
    """What is at an address, under the name that the bar shows.

    Raises ParameterError of the flag when it cannot be fetched whole; the flag's value is `shown`, else the address.
    """
    parts: list[bytes] = []
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with Progress(total=size or None, unit="B", unit_scale=True, desc=name) as bar:
                while part := answer.read(PART):
                    parts.append(part)
                    bar.update(len(part))
        content = b"".join(parts)
        if size and len(content) != size:
            raise OSError(f"{len(content)} of {size} bytes came")
    except (OSError, ValueError, http.client.HTTPException) as error:
        what = name if shown is None else url.removeprefix(shown).lstrip("/")
        kind = "an address" if shown is None else f"a {flag}"
        raise ParameterError(flag, shown or url, f"must be {kind} that gives {what} ({describe(error)})") from None
    return content
