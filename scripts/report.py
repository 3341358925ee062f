"""Gather what lies in results/ into one page, results/index.html: every figure and table, and the command behind it.

The page needs no network: it links to the files where they lie. Folders that are broken or not finished are left out,
and named at the page's end. Example: python scripts/report.py
"""

import common.quiet_start  # noqa: F401

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from PIL import Image

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import PARTIAL, RESULTS, describe, made, write_text
from common.statistics_seeds import seconds
from experiments.commands import (
    COMPARISON,
    KINDS,
    OTHER,
    STUDY,
    SWEEP,
    Behind,
    FolderError,
    command_behind,
    command_words,
    path_words,
)
from experiments.page_parts import address, command_html, csv_table, document, link, markdown, text
from resd3_medium.image_folder import PREVIEW
from resd3_medium.png import CHUNK, read_task

GALLERY = "gallery"  # figures that come with the project; shown where nothing else is
SHOWN = {".png", ".csv", ".md"}
SMALL = 128  # pixels; images up to this side are enlarged
AT_ONCE = 24  # figures of a folder that are seen without a click
INTRODUCTION = """<p>Each section shows a folder: its command, figures and tables. Commands are reconstructed from what
the folder holds, with those parameters that differ from the defaults, and without <code>--out</code>. Numbers in tables
are shortened to five digits; the files, which are linked, hold all.</p>"""


@dataclasses.dataclass(kw_only=True)
class ReportConfig(Parameters):
    """Every parameter of report.py."""

    results: str = parameter(str(RESULTS), "folder whose results are gathered", path=True)
    out: str | None = parameter(None, "file of the page; default index.html in that folder", path=True)


@dataclasses.dataclass
class Entry:
    """A folder on the page: what made it, and the files that it shows, those below it included."""

    folder: Path
    behind: Behind
    files: list[Path]


@dataclasses.dataclass
class Found:
    """What lies below a folder: entries by their folder, and why the other folders are left out."""

    entries: dict[Path, Entry]
    left_out: dict[Path, str]


def gather(top: Path) -> Found:
    """All entries below a folder. A file belongs to the nearest folder above it that a command has made."""
    found = Found({}, {})

    def unreadable(error: OSError) -> None:
        found.left_out[Path(error.filename)] = describe(error)

    def owner(folder: Path) -> Path | None:
        """The nearest folder above that is on the page or left out; files that lie loose own nothing."""
        loose = top in found.entries and found.entries[top].behind.kind == OTHER
        known = [*found.entries, *found.left_out]
        return next((above for above in folder.parents if above in known and not (loose and above == top)), None)

    for place, folders, names in os.walk(top, onerror=unreadable):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if folder == top and folders != [GALLERY]:
            folders[:] = [name for name in folders if name != GALLERY]
        names = sorted(name for name in names if not name.startswith(".") and PARTIAL not in name)
        names = [name for name in names if (folder / name).is_file()]  # a pipe would keep the page waiting
        files = [folder / name for name in names if Path(name).suffix in SHOWN and name != PREVIEW]
        above = owner(folder)
        try:
            behind = command_behind(folder)
        except (FolderError, OSError) as error:
            found.left_out[folder] = str(error) if isinstance(error, FolderError) else describe(error)
            continue
        if behind.kind == OTHER and "config.json" not in names:  # nothing but its files tells of it
            if above in found.entries:
                found.entries[above].files += files
                continue
            if above or not names or (folder == top and not files):
                continue
        found.entries[folder] = Entry(folder, named(behind, folder, top), files)
    for folder in [folder for folder, entry in found.entries.items() if not entry.files]:
        del found.entries[folder]
        found.left_out[folder] = "no figure and no table"
    return found


def named(behind: Behind, folder: Path, top: Path) -> Behind:
    """The gallery and files without a folder get titles of their own."""
    if folder == top and behind.kind == OTHER:
        return dataclasses.replace(behind, title="Files without a folder")
    if folder.name == GALLERY and folder.parent == top:
        note = "These figures come with the project; the pages in docs/ name the command behind each."
        return dataclasses.replace(behind, title="Gallery", note=note)
    return behind


def facts(folder: Path) -> str:
    """What summary.json says of delay, time and memory, in words; nothing where it says nothing."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        found = {k: float(v) for k, v in summary.items() if isinstance(v, int | float) and math.isfinite(v)}
        minutes = [float(part) for part in summary.get("minutes", [])]
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return ""
    words = []
    if "delay_s" in found:
        words.append(f"mean delay {seconds(found['delay_s'])} s")
        if opt := found.get("opt_delay_s"):
            words.append(f"Opt-TS {seconds(opt)} s ({found['delay_s'] / opt - 1:+.1%})")
        if "averaged_episodes" in found:
            of = f" of {found['episodes']:.0f}" if "episodes" in found else ""
            words.append(f"over the last {found['averaged_episodes']:.0f}{of} episodes")
    took = found.get("seconds", 60 * sum(minutes) if minutes else None)
    if took is not None:
        words.append(f"time {took:.1f} s" if took < 120 else f"time {took / 60:.1f} min")
    if "peak_memory_mib" in found:
        words.append(f"peak memory {found['peak_memory_mib']:.0f} MiB")
    return f'<p class="facts">{text(", ".join(words))}</p>' if words else ""


def figure(path: Path, folder: Path, start: Path) -> str:
    """A picture with its name; one that the image model made with its prompt, and the command that makes it again.

    Pillow raises many kinds of exceptions when the file is no whole picture.
    """
    with Image.open(path) as image:
        image.load()
        small, made = max(image.size) <= SMALL, CHUNK in getattr(image, "text", {})
    words = link(path, start, path.relative_to(folder).as_posix())
    pdf = path.with_suffix(".pdf")
    words += f", {link(pdf, start)}" if pdf.is_file() else ""
    if made:
        try:
            task, _ = read_task(str(path))
            words += f": <q>{text(task.prompt)}</q>, seed {text(task.seed)}, {text(task.settings.steps)} steps"
            words += command_html(command_words("resd3_medium/refine_sd3_infer.py", {"from_image": path_words(path)}))
        except ParameterError as error:
            words += f" ({text(error.reason)})"
    kind = ' class="small"' if small else ""
    place = address(path, start)
    return (
        f'<figure{kind}><a href="{place}"><img{kind} src="{place}" alt="{text(path.stem)}" loading="lazy"></a>\n'
        f"<figcaption>{words}</figcaption></figure>"
    )


def show(path: Path, folder: Path, start: Path) -> str:
    """A file on the page; one that cannot be read is named."""
    try:
        if path.suffix == ".png":
            return figure(path, folder, start)
        name = path.relative_to(folder).as_posix()
        return markdown(path, start, name) if path.suffix == ".md" else csv_table(path, start, name)
    except Exception as error:  # whatever others have put into the folder
        return f'<p class="note">{link(path, start)} cannot be shown ({text(describe(error))})</p>'


def entry_html(entry: Entry, start: Path, anchor: str, level: int) -> str:
    """A folder: title, command, facts, figures, tables."""
    behind = entry.behind
    parts = [f'<h{level} id="{anchor}">{text(behind.title)}</h{level}>']
    parts.append(f'<p class="facts">folder {link(entry.folder, start, path_words(entry.folder))}</p>')
    if not behind.note or behind.command:
        parts.append(command_html(behind.command))
    parts += [f'<p class="note">{text(behind.note)}</p>'] if behind.note else []
    parts.append(facts(entry.folder))
    figures = [show(path, entry.folder, start) for path in entry.files if path.suffix == ".png"]
    parts += figures[:AT_ONCE]
    if figures[AT_ONCE:]:
        more = "\n".join(figures[AT_ONCE:])
        parts.append(f"<details><summary>{len(figures) - AT_ONCE} more figures</summary>\n{more}</details>")
    for path in entry.files:
        if path.suffix == ".csv" and path.with_suffix(".md") in entry.files:
            parts.append(f'<p class="facts">{link(path, start)} holds the numbers of {text(path.stem)}.md</p>')
        elif path.suffix != ".png":
            parts.append(show(path, entry.folder, start))
    return "\n".join(parts)


def page(found: Found, top: Path, start: Path) -> str:
    """The whole page: a table of contents, a section for each kind of result, and what is left out.

    Runs below a comparison, a sweep or a study are folded into its section.
    """
    contents, sections, number = [], [], 0
    parents = [folder for folder, entry in found.entries.items() if entry.behind.kind in (COMPARISON, SWEEP, STUDY)]
    runs_of = {folder: [e for e in found.entries.values() if folder in e.folder.parents] for folder in parents}
    folded = [id(entry) for runs in runs_of.values() for entry in runs]
    for kind in KINDS:
        chosen = [entry for entry in found.entries.values() if entry.behind.kind == kind and id(entry) not in folded]
        if not chosen:
            continue
        contents.append(f"<li>{text(kind)}\n<ul>")
        sections.append(f"<h2>{text(kind)}</h2>")
        for entry in chosen:
            number += 1
            anchor = f"result-{number}"
            contents.append(f'<li><a href="#{anchor}">{text(entry.behind.title)}</a></li>')
            sections.append(entry_html(entry, start, anchor, 3))
            if runs := runs_of.get(entry.folder):
                shown = "\n".join(entry_html(run, start, f"{anchor}-{k + 1}", 4) for k, run in enumerate(runs))
                sections.append(f"<details><summary>{len(runs)} runs behind it</summary>\n{shown}</details>")
        contents.append("</ul></li>")
    if not found.entries:
        sections.append("<p>There is nothing here yet. <code>bash scripts/reproduce.sh</code> makes results.</p>")
    if found.left_out:
        contents.append('<li><a href="#left-out">Left out</a></li>')
        sections.append('<h2 id="left-out">Left out</h2>\n<ul>')
        sections += [f"<li>{text(path_words(folder))}: {text(why)}</li>" for folder, why in found.left_out.items()]
        sections.append("</ul>")
    head = f"<h1>Results</h1>\n<p>What lies in <code>{text(path_words(top))}</code>.</p>\n{INTRODUCTION}"
    return document("Results", "\n".join([head, "<nav><ul>", *contents, "</ul></nav>", *sections]))


def main(config: ReportConfig, given: dict[str, Any]) -> None:
    top = Path(config.results)
    if not top.is_dir():
        raise ParameterError("results", top, "must be a folder")
    out = Path(config.out) if config.out else top / "index.html"
    if out.is_dir():
        raise ParameterError("out", out, "must be a file, not a folder")
    start = made(out.parent)
    found = gather(top)
    write_text(out, page(found, top, start))
    print(f"{len(found.entries)} folders of results on one page, {len(found.left_out)} left out: open {out}")


if __name__ == "__main__":
    command_line(ReportConfig, main, __doc__)
