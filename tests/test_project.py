"""The project's shape: who may import whom, how long files are, and that its descriptions agree."""

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a folder may import besides itself; scripts and tests may import everything.
BELOW = {
    "common": set(),
    "fused": {"common"},
    "lad_ts": {"common", "fused"},
    "coop_lad_ts": {"common", "lad_ts"},
    "baselines": {"common", "lad_ts", "coop_lad_ts"},
    "experiments": {"common", "lad_ts", "coop_lad_ts", "baselines"},
    "mec_env": {"common", "lad_ts", "coop_lad_ts", "baselines", "trace_ts"},
    "resd3_medium": {"common"},
    "pocket": {"common", "resd3_medium"},
    "meg": {"common", "resd3_medium"},
    "trace_ts": {"common"},
    "edge_sim": {"common", "lad_ts", "coop_lad_ts", "baselines", "trace_ts"},
    "dedgeai": {"common", "lad_ts", "coop_lad_ts", "baselines", "resd3_medium", "edge_sim", "trace_ts"},
    "gpu_check": {"common", "resd3_medium", "pocket"},
}
SHORT = ("fused", "lad_ts", "coop_lad_ts", "baselines", "common", "experiments", "mec_env")
MOST_LINES = 350
ENTRY = re.compile(r"main_\w+|refine_sd3_infer|test_MEG|train_\w+")


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the project's folders and of scripts/ by its name, as in lad_ts.training."""
    paths = [path for folder in (*BELOW, "scripts") for path in sorted((ROOT / folder).glob("*.py"))]
    return {f"{path.parent.name}.{path.stem}": path for path in paths}


def names_imported(path: Path) -> set[str]:
    """What a file imports, anywhere in it: modules, and names of modules that may be modules themselves."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports are not used here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """The project's modules that each of them imports."""
    return {name: names_imported(path) & modules().keys() - {name} for name, path in modules().items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A path that ends where it begins; empty when there is none."""
    done: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(edges.get(node, ())):
            if found := follow(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := follow(node, []))), [])


def requirements(name: str) -> dict[str, str]:
    """Package to version of a file of requirements; every line pins one package."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pins = [re.fullmatch(r"([\w-]+)==([\w.]+)", line) for line in lines if line]
    assert all(pins), f"{name} must hold packages with versions only, since pyproject.toml reads it"
    return {pin[1].lower().replace("_", "-"): pin[2] for pin in pins}


@functools.cache
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_of_imports_among_files():
    assert len(graph()) > 80 and "lad_ts.environment_lad" in graph()["lad_ts.training"]
    assert circle(graph()) == []


def test_no_circle_of_imports_among_folders():
    edges: dict[str, set[str]] = {}
    for name, targets in graph().items():
        folder = name.partition(".")[0]
        edges.setdefault(folder, set()).update({target.partition(".")[0] for target in targets} - {folder})
    assert circle(edges) == []


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_only_those_below_it(folder):
    wrong = {
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if name.partition(".")[0] == folder and target.partition(".")[0] not in {folder, *BELOW[folder]}
    }
    assert wrong == set()


def test_nothing_but_tests_imports_from_an_entry_script():
    scripts = {name for name in modules() if ENTRY.fullmatch(name.partition(".")[2]) or name.startswith("scripts.")}
    assert {"lad_ts.main_lad", "resd3_medium.refine_sd3_infer", "meg.test_MEG", "meg.train_split"} <= scripts
    wrong = {f"{name} imports {target}" for name, targets in graph().items() for target in targets & scripts}
    assert wrong == set()


@pytest.mark.parametrize("folder", SHORT)
def test_no_file_is_long(folder):
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / folder).glob("*.py")}
    assert lines and {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_pyproject_reads_its_dependencies_from_the_requirements():
    assert {"dependencies", "optional-dependencies"} <= set(pyproject()["project"]["dynamic"])
    dynamic = pyproject()["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    assert dynamic["optional-dependencies"] == {
        "dev": {"file": ["requirements-dev.txt"]},
        "rl": {"file": ["requirements-rl.txt"]},
        "bench": {"file": ["requirements-bench.txt"]},
        "ldpc": {"file": ["requirements-ldpc.txt"]},
    }
    run, rl, dev = (requirements(f"requirements{kind}.txt") for kind in ("", "-rl", "-dev"))
    assert "torch" in run and "gymnasium" in rl and "pytest" in dev
    assert not run.keys() & dev.keys() and not run.keys() & rl.keys() and not rl.keys() & dev.keys()
    setup = (ROOT / "scripts/setup.sh").read_text()
    assert "cat requirements.txt requirements-rl.txt requirements-dev.txt pyproject.toml | cksum" in setup
    assert "-r requirements.txt -r requirements-rl.txt -r requirements-dev.txt -e ." in setup


def test_every_package_that_is_imported_is_required():
    """Those of tests may stand in any file; a package that only Ray or torch brings along counts as missing.

    What is in the extras rl, bench and ldpc counts, too; the next test tells who may import the former.
    """
    run, rl, bench, dev = (requirements(f"requirements{kind}.txt") for kind in ("", "-rl", "-bench", "-dev"))
    rl |= bench | requirements("requirements-ldpc.txt")
    distributions = packages_distributions()
    here = {*BELOW, *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    for paths, allowed in ((modules().values(), run | rl), ((ROOT / "tests").glob("*.py"), run | rl | dev)):
        for path in paths:
            tops = {name.partition(".")[0] for name in names_imported(path)} - here - sys.stdlib_module_names
            for top in tops:
                owners = {
                    owner.lower().replace("_", "-")
                    for owner in distributions.get(top, [top, f"{top}-python", f"{top}-no-rt"])
                }
                assert owners & allowed.keys(), f"{path.relative_to(ROOT)} imports {top}, which nothing requires"


def test_the_extra_of_other_libraries_is_imported_where_it_is_used_only():
    """The scripts run without the extra rl: outside mec_env, its packages are imported inside functions only."""
    distributions = packages_distributions()
    for name, path in modules().items():
        if name.startswith("mec_env."):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
                found = [owner for n in names for owner in distributions.get(n.partition(".")[0], [])]
                owners = {owner.lower().replace("_", "-") for owner in found}
                assert not owners & requirements("requirements-rl.txt").keys(), f"{name} imports {names} at its top"


def test_every_folder_of_modules_is_installed():
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == set(BELOW)
    found = {path.parent.name for path in ROOT.glob("[a-z]*/__init__.py")}
    assert found == set(BELOW)


def test_licence_and_citation_agree_with_pyproject():
    project, citation = pyproject()["project"], (ROOT / "CITATION.cff").read_text()
    fields = dict(re.findall(r"^([\w-]+): \"?(.*?)\"?$", citation, flags=re.MULTILINE))
    assert (fields["cff-version"], fields["version"], fields["license"]) == ("1.2.0", project["version"], "MIT")
    assert project["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    (author,) = project["authors"]
    assert f'name: "{author["name"]}"' in citation and author["name"] in (ROOT / "LICENSE").read_text()
    assert {"arXiv:2412.18212", "arXiv:2407.02804"} <= set(re.findall(r'value: "(.*)"', citation))
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text().replace("[", "").replace("]", "")


def test_hooks_before_a_commit_fetch_nothing():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    assert set(re.findall(r"language: (\S+)", text)) == {"system"}
    assert re.findall(r"entry: (\S+ \S+)", text) == [".venv/bin/ruff check", ".venv/bin/ruff format"]


def test_every_marker_of_a_test_is_registered_and_explained():
    markers = {text.partition(":")[0] for text in pyproject()["tool"]["pytest"]["ini_options"]["markers"]}
    assert markers == {"alone", "cuda", "slow"}
    script, page = (ROOT / "scripts/test.sh").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{marker}`" in page and marker in script for marker in markers) and "--slow" in page


def test_every_file_of_tests_is_told_of():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert {path.name for path in (ROOT / "tests").glob("test_*.py") if f"`{path.name}`" not in page} == set()
