"""Files of prompts: comments, blank lines, and the forms of text that editors write."""

import codecs
import os
import threading
from pathlib import Path

import pytest
from helpers import refusal

from resd3_medium import refine_sd3_infer, tasks
from resd3_medium.tasks import prompt_lines, read_lines


@pytest.mark.parametrize(
    "content",
    [
        b"# a comment\r\n\r\n  a boat \r\n\t# another\r\n\\# first\r\na # in it\r\n",
        codecs.BOM_UTF8 + b"a boat\n#\n\\# first\na # in it",
        "a boat\r\n# x\r\n\\# first\r\na # in it\r\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "a boat\r# x\r\\# first\ra # in it".encode("utf-16-be"),
        "a boat\n\\# first\na # in it".encode("utf-32"),
    ],
)
def test_prompt_files_have_comments_and_come_from_windows_too(tmp_path, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    found = read_lines(tmp_path / "prompts.txt", "prompts")
    assert found == ["a boat", "# first", "a # in it"]
    (tmp_path / "prompts.txt").write_text(prompt_lines(found))
    assert read_lines(tmp_path / "prompts.txt", "prompts") == found


def test_every_line_can_be_written_and_read_again(tmp_path):
    prompts = ["#", "\\#", "\\\\# twice", "\\n is no escape", "a \\# inside", "\\"]
    (tmp_path / "prompts.txt").write_text(prompt_lines(prompts))
    assert read_lines(tmp_path / "prompts.txt", "prompts") == prompts


def test_pipes_are_read_and_nothing_is_waited_for_or_read_for_ever(tmp_path, capsys, monkeypatch):
    read, write = os.pipe()  # as a shell's <(command) gives
    with os.fdopen(read), os.fdopen(write, "wb") as writer:
        threading.Timer(0.2, lambda: (writer.write(b"a boat\n"), writer.close())).start()
        assert read_lines(Path(f"/proc/self/fd/{read}"), "prompts") == ["a boat"]
    os.mkfifo(tmp_path / "nobody")
    monkeypatch.setattr(tasks, "LARGEST_FILE", 2**20)
    for path, told in ((tmp_path / "nobody", "it is empty"), ("/dev/zero", "more than 1 MiB"), (tmp_path, "directory")):
        assert told in refusal(capsys, refine_sd3_infer, "--prompts", path, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a boat\n".encode("utf-16-le"), "UTF-16 lacks its mark"),
        (codecs.BOM_UTF16_LE + b"a", "it is not UTF-16 text"),
        (codecs.BOM_UTF8 + b"\xff", "it is not UTF-8 text"),
        (b"# only\n\n", "comments and blank lines only"),
        (b"", "it is empty"),
    ],
)
def test_prompt_files_that_cannot_be_read_are_told(tmp_path, capsys, content, told):
    (tmp_path / "prompts.txt").write_bytes(content)
    line = refusal(capsys, refine_sd3_infer, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out")
    assert told in line and not (tmp_path / "out").exists()
