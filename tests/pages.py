"""What is wrong with a page: names that are not there, links that lead nowhere, commands that no script understands.

Asks the scripts themselves which parameters they declare, and the pages themselves which headings they have. Start
reading at `problems`.
"""

import ast
import dataclasses
import fnmatch
import functools
import importlib.util
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from scripts_by_path import load

from common.parameters import Parameters

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS = ["scheduling", "methods", "cooperative", "text-to-image", "pocket-model", "meg", "edge-system"]
PARTS += ["edge-api", "deploy", "trace"]
FORM = ["What it is", "How to run it", "What it writes", "How it differs from the paper or the published code"]
FORM += ["Results", "Limits"]
MADE_UP = ROOT / "docs" / "made_up.md"  # where the pages with mistakes pretend to lie

FENCE = re.compile(r"^(```|~~~)(\w*)\n(.*?)^\1", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
PATH = re.compile(r"\.?[\w<>*-][\w.<>*-]*(/[\w.<>*-]+)*/?")
SUFFIXES = {
    *("cff", "csv", "gz", "html", "json", "md", "npz", "pdf", "png"),
    *("pt", "py", "safetensors", "sh", "toml", "txt"),
}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}
PYTEST = {"k", "m", "x", "q", "v", "s", "n", "durations", "lf", "pdb"}  # what scripts/test.sh hands on
SHORT_WORDS = ("h", "help")


# --- what a page is about ---------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    """The page without its blocks of code and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL)


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set(re.findall(r"<a\s[^>]*?(?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*\s*$", without_code(text), re.MULTILINE):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `python X.py` and `bash X.sh` in the page's code, joined over line ends."""
    shell = [body for _, language, body in FENCE.findall(text) if language in ("", "bash", "sh", "console", "shell")]
    lines = [line for body in shell for line in re.sub(r"\\\n\s*", " ", body).splitlines()]
    for line in lines + [" ".join(span.split()) for _, span in SPAN.findall(without_code(text))]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a lone quotation mark: prose
            continue
        part: list[str] = []
        for word in [*words, ";"]:
            if word not in (";", "&&", "||", "|", "&"):
                part.append(word.rstrip(";"))
                continue
            while part and (re.fullmatch(r"\w+=.*", part[0]) or part[0] == "$"):
                part.pop(0)
            if len(part) > 1 and Path(part[0]).name in ("python", "python3", "bash", "sh"):
                yield part[1:]
            part = []


# --- what there is ----------------------------------------------------------------------------------------------------


@functools.cache
def ignored_patterns() -> list[str]:
    lines = (ROOT / ".gitignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def made_by_runs(path: str) -> bool:
    """Whether git ignores the path: runs and users put it there, so it need not exist."""
    parts, ignored = path.rstrip("/").split("/"), False
    heads = ["/".join(parts[: k + 1]) for k in range(len(parts))]
    for pattern in ignored_patterns():
        plain = pattern.lstrip("!").rstrip("/")
        names = heads if "/" in plain else parts
        if any(fnmatch.fnmatchcase(name, plain.lstrip("/")) for name in names):
            ignored = not pattern.startswith("!")
    return ignored


@functools.cache
def file_names() -> set[str]:
    """The names of all scripts and modules, wherever they lie."""
    return {path.name for suffix in ("py", "sh") for path in ROOT.rglob(f"*.{suffix}") if ".venv" not in path.parts}


def path_problem(span: str) -> str:
    """What is wrong with a path in backticks; nothing for spans that are no path of the repository."""
    name = span.rstrip("/")
    if not PATH.fullmatch(span) or re.search(r"(^|/)my_|_my_", name):  # the reader's own
        return ""
    suffix = name.rpartition(".")[2] if "." in name else ""
    if "/" not in span:
        return f"no file is called {name}" if suffix in ("py", "sh") and name not in file_names() else ""
    if suffix not in SUFFIXES and name.split("/")[0] not in FOLDERS | {"results"}:
        return ""
    parts = name.split("/")
    literal = [part for part in parts if not re.search(r"[<>*]", part)]
    fixed = "/".join(parts[: next((k for k, part in enumerate(parts) if part not in literal), len(parts))])
    if (ROOT / fixed).exists() or made_by_runs(name):
        return ""
    return f"{span} is not there"


@functools.cache
def scripts() -> dict[str, ast.Module]:
    """Every file that can be run and declares parameters, by its path: it calls `command_line` at its end."""
    found = {}
    for path in sorted(ROOT.glob("*/*.py")):
        if path.parent.name != "tests" and "command_line(" in (text := path.read_text()):
            tree = ast.parse(text)
            if any(parameter_class(node) is not None for node in ast.walk(tree)):
                found[path.relative_to(ROOT).as_posix()] = tree
    return found


def parameter_class(node: ast.AST) -> ast.expr | None:
    """The first argument of a call of `command_line`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "command_line" and node.args:
        return node.args[0]
    return None


def module_of(script: str) -> ModuleType:
    folder, name = script.removesuffix(".py").split("/")
    if folder == "scripts":
        return load(name)
    return importlib.import_module(f"{folder}.{name}")


@functools.cache
def declared(script: str) -> dict[str, dataclasses.Field]:
    """The parameters of a Python script by name."""
    module, classes = module_of(script), [parameter_class(node) for node in ast.walk(scripts()[script])]
    found = [eval(ast.unparse(cls), vars(module)) for cls in classes if cls is not None]
    assert found and all(issubclass(cls, Parameters) for cls in found), script
    return {field.name: field for cls in found for field in dataclasses.fields(cls)}


def python_behind(script: str) -> str:
    """The Python script that a shell script hands its arguments to."""
    text = (ROOT / script).read_text()
    found = re.search(r"(\w+/\w+\.py) [^\n]*\"\$@\"", text.replace("\\\n", " "))
    return found[1] if found else ""


def flag_problem(script: str, words: list[str]) -> str:
    """What is wrong with the parameters of a command."""
    if script.endswith(".sh") and not python_behind(script):
        known: dict[str, dataclasses.Field | None] = dict.fromkeys(re.findall(r"--(\w+)", (ROOT / script).read_text()))
        if "pytest" in (ROOT / script).read_text():
            known |= dict.fromkeys(PYTEST)
    else:
        target = script if script.endswith(".py") else python_behind(script)
        if target not in scripts():
            return f"{target} declares no parameters" if words else ""
        known = dict(declared(target))
    for k, word in enumerate(words):
        if not re.match(r"--?[A-Za-z]", word):
            continue
        flag, equals, value = word.lstrip("-").partition("=")
        if flag in SHORT_WORDS:
            continue
        if flag.replace("-", "_") not in known:
            return f"{script} has no parameter {word}"
        field = known[flag.replace("-", "_")]
        choices = field.metadata.get("choices") if field else None
        given = value if equals else words[k + 1] if k + 1 < len(words) else ""
        if choices and given not in choices:
            return f"{script}: {word} {given} is none of {', '.join(choices)}"
    return ""


def command_problem(words: list[str]) -> str:
    """What is wrong with the words behind `python` or `bash`."""
    script = words[0]
    if not script.endswith((".py", ".sh")) or re.search(r"(^|/)my_|_my_", script):
        return ""
    if not (ROOT / script).is_file():
        return f"the script {script} is not there"
    return flag_problem(script, words[1:])


@functools.cache
def all_flags() -> set[str]:
    """Every parameter that some script declares, and those of the shell scripts."""
    shells = "".join(path.read_text() for path in (ROOT / "scripts").glob("*.sh"))
    return {name for script in scripts() for name in declared(script)} | set(re.findall(r"--(\w+)", shells)) | PYTEST


def span_problem(span: str) -> str:
    """What is wrong with a span of code: a path, a parameter, or a name in a module."""
    if match := re.match(r"--([A-Za-z][\w-]*)", span):
        name = match[1].replace("-", "_")
        return "" if name in all_flags() or name in SHORT_WORDS else f"no script has a parameter --{match[1]}"
    if re.fullmatch(r"\w+(\.\w+)+", span) and (ROOT / span.split(".")[0] / "__init__.py").is_file():
        module, _, name = span.rpartition(".")
        try:
            return "" if hasattr(importlib.import_module(module), name) else f"{module} has no {name}"
        except ImportError:
            return f"{module} is no module"
    return path_problem(span)


def link_problem(target: str, text: str, place: Path) -> str:
    """What is wrong with a link's target, on a page with that text at that place."""
    if re.match(r"\w+:", target):
        return ""
    file, _, anchor = target.partition("#")
    there = (place.parent / file).resolve() if file else place
    if file and (not there.exists() or not there.is_relative_to(ROOT)):
        return f"the link {target} leads nowhere"
    if file and made_by_runs(there.relative_to(ROOT).as_posix()):
        return f"the link {target} leads to what is not in the repository"
    if anchor and anchor not in slugs(there.read_text() if file else text):
        return f"{target} has no such heading"
    return ""


def problems(text: str, place: Path) -> list[str]:
    """Everything that is wrong with a page of that text that lies at that place."""
    prose = without_code(text)
    found = [link_problem(match[1] or match[2], text, place) for match in LINK.finditer(prose)]
    found += [span_problem(" ".join(span.split())) for _, span in SPAN.findall(prose)]
    found += [command_problem(words) for words in commands(text)]
    found += re.findall(r"@[A-Z0-9]+@|\bTODO\b|\bTBD\b", text)
    return [problem for problem in found if problem]
