"""Fetch the trace GenTD26 of a text-to-image service, 2 MB, from Alibaba's public repository clusterdata.

Its terms: the data may be used for research or study purposes; it comes without a licence, so this project does not
pass it on. Its paper is by Lin et al., SoCC 2025. The file is checked before it takes the place of an older one.
Example:
python scripts/download_trace.py --accept_terms True
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

from common.command_line import command_line
from common.fetching import fetched
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import made, replace_file
from trace_ts.workload import GENTD26_FILE, Requests, read_gentd26

REPOSITORY = "https://raw.githubusercontent.com/alibaba/clusterdata/master"
URL = f"{REPOSITORY}/cluster-trace-v2026-GenAI/lora_request_trace.csv"
TERMS = "GenTD26 may be used for research or study purposes only; it has no licence and must not be passed on"


@dataclasses.dataclass(kw_only=True)
class DownloadConfig(Parameters):
    """Every parameter of download_trace.py."""

    accept_terms: bool = parameter(False, "whether you accept the trace's terms: research or study, not passed on")
    url: str = parameter(URL, "where it is to be had, or a mirror")
    out: str = parameter(str(GENTD26_FILE), "file of the trace; one that is there is replaced", path=True)


def read(path: Path, url: str) -> Requests:
    """The requests of a file that has come. Raises ParameterError of --url when it is not the trace."""
    try:
        return read_gentd26(path)
    except ParameterError as error:
        raise ParameterError("url", url, f"must give lora_request_trace.csv of GenTD26, but {error.reason}") from None


def main(config: DownloadConfig, given: dict[str, Any]) -> None:
    """Fetch the file, and keep it if it is the trace. Raises ParameterError."""
    if not config.accept_terms:
        raise ParameterError("accept_terms", config.accept_terms, f"must be True: {TERMS}")
    print(f"{TERMS}; accepted")
    out = Path(config.out)
    made(out.parent)
    if out.is_dir():
        raise ParameterError("out", out, "must be a file, but is a folder")
    content = fetched(config.url, out.name, "url")
    requests: list[Requests] = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)
        requests.append(read(temporary, config.url))

    replace_file(out, write)
    trace = requests[0]
    print(f"{len(trace)} requests of {trace.num_users} users for {trace.num_models} models in {out}")


if __name__ == "__main__":
    command_line(DownloadConfig, main, __doc__)
