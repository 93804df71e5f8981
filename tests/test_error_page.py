"""docs/errors.md lists every error of the package, and the package raises nothing else on purpose."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from textwrap import dedent

import pytest

from pera_lightning import errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
GENERATOR = runpy.run_path(str(ROOT / "docs" / "generate_errors.py"))
# What a value from a file is refused with; who reads the file makes a PeraError of it.
OF_VALUES = {"JsonError", "SchemaError"}
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")}
# What else is raised: Python's protocol of modules, a value that is caught in its own file, errors made elsewhere.
OTHER_RAISES = {
    ("__init__.py", "raise AttributeError(f'module {__name__!r} has no attribute {name!r}')"),
    # Ctrl-C.
    ("cli/compare/interrupts.py", "raise SystemExit(STOPPED)"),
    ("cli/compare/interrupts.py", "raise KeyboardInterrupt"),
    # Caught where folders are written, which makes FolderErrors of what the system says.
    ("storage/folder_kind.py", "raise NotADirectoryError(errno.ENOTDIR, f'{found}, which is {kind}')"),
    (
        "storage/out_folder.py",
        "raise OSError(errno.ENOSPC, f'{os.strerror(errno.ENOSPC)}: {bytes_needed:,} bytes needed, {free:,} free')",
    ),
    ("storage/exchange.py", "raise OSError(code, os.strerror(code), str(one), None, str(other))"),
    ("storage/exchange.py", "raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))"),
    ("storage/whole_folder.py", "raise OSError(errno.EBUSY, _TOO_MANY)"),
    ("storage/journal.py", "raise OSError(errno.EBUSY, _TOO_MANY)"),
    ("storage/held_folder.py", "raise NotADirectoryError(errno.ENOTDIR, 'a link', str(path))"),
    ("storage/regular_file.py", "raise OSError(errno.EFBIG, f'more than {most:,} bytes', str(path))"),
    ("storage/whole_folder.py", "raise error.__cause__"),
    ("storage/whole_folder.py", "raise IsADirectoryError(errno.EISDIR, f'{path.name!r} is a folder there')"),
    # Caught where the list is read, which makes a CheckpointError of them.
    ("checkpoint/training/distributed_metadata.py", "raise FileNotFoundError('there is no such file')"),
    ("checkpoint/training/distributed_metadata.py", "raise ValueError(f'it has {path.stat().st_size:,} bytes')"),
    ("checkpoint/training/distributed_metadata.py", "raise ValueError(f'it has {got}')"),
    ("checkpoint/training/distributed_metadata.py", "raise pickle.UnpicklingError('builtins.getattr')"),
    (
        "checkpoint/training/distributed_metadata.py",
        "raise pickle.UnpicklingError(f'it names {module}.{name}, which no list of tensors needs')",
    ),
    ("checkpoint/training/pickle_walk.py", "raise pickle.UnpicklingError('it takes what is not there')"),
    ("checkpoint/training/pickle_walk.py", "raise pickle.UnpicklingError('it numbers things that it does not hold')"),
    (
        "checkpoint/training/pickle_walk.py",
        "raise pickle.UnpicklingError('it holds tuples without end in one another')",
    ),
    (
        "checkpoint/training/pickle_walk.py",
        "raise pickle.UnpicklingError(f'it takes more than {_STEPS:,} steps to read')",
    ),
    # A mistake of our own.
    ("storage/whole_folder.py", "raise ValueError(f'{path.name!r} is no file of {kind.name}')"),
    # Of an annotation that is no plain type: caught in the same file.
    ("cli/options/values.py", "raise ValueError(ast.unparse(node))"),
    # As the system says it: its callers make an error of it as they do of the system's own.
    ("storage/regular_file.py", "raise IsADirectoryError(errno.EISDIR, 'a folder, not a file', str(path))"),
    (
        "storage/regular_file.py",
        "raise OSError(errno.EINVAL, f\"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file\", str(path))",
    ),
    # The error of the first process, in the others; Lightning's way to end a run.
    ("models/parallel/parallel_causal_lm.py", "raise failure"),
    ("checkpoint/adapter_folder.py", "raise problem"),
    ("callback/trained/trained_adapter.py", "raise problem"),
    ("callback/resume/termination.py", "raise SIGTERMException"),
    ("models/activation_offloading.py", "raise RuntimeError(message)"),
    ("data/blocks.py", "raise row"),
    # What a template says of a conversation; its caller makes a DataError of it, as of the template's own.
    ("data/chat/chat_template.py", "raise text"),
    ("data/chat/prompts.py", "raise found"),
    ("data/chat/conversations.py", "raise error"),
    ("data/chat/conversations.py", "raise row"),
    ("data/chat/row_formats.py", "raise next((row for row in rows if isinstance(row, DataError)))"),
    ("data/reading/text_lines.py", "raise line"),
    ("evaluation/questions.py", "raise row"),
}


# Caught where a file is opened, and an error of ours from there.
INTERNAL = {"ArchiveDamage", "ConfigDamage", "GgufDamage", "NotOursError", "TokenizerDamage", "WeightsDamage"}


@pytest.fixture(scope="module")
def nodes() -> list[tuple[str, ast.AST]]:
    """Everything in the package's source, with the file."""
    root = ROOT / "pera_lightning"
    trees = {path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8")) for path in root.rglob("*.py")}
    return [(file, node) for file, tree in trees.items() for node in ast.walk(tree)]


def generate(**modules: str) -> str:
    """The sections of a page for made-up modules."""
    sources = {f"package.{name}": dedent(source) for name, source in modules.items()}
    classes = 'class DataError(PeraError):\n    """Bad data."""\n\nclass FileError(PeraError):\n    """Bad file."""\n'
    return GENERATOR["page"](sources, classes).removeprefix(GENERATOR["INTRO"]).strip()


def section(what: str, got: str = "got", expected: str = "expected", cure: str = "fix") -> str:
    return f"### {what}\n\n- Got: {got}\n    - Expected: {expected}\n    - **Cure:** {cure}"


def test_the_page_is_that_of_the_source() -> None:
    assert PAGE.read_text(encoding="utf-8") == GENERATOR["current_page"](), "run `make docs` and commit docs/errors.md"


def test_every_raise_is_a_pera_error(nodes: list[tuple[str, ast.AST]]) -> None:
    helpers = {
        node.name
        for _, node in nodes
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) in CLASSES
    }
    others = set()
    for file, node in nodes:
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            parameter = file == "checkpoint/adapter_state.py" and ast.unparse(raised) == "error"
            if ast.unparse(raised) not in CLASSES | OF_VALUES | INTERNAL | helpers and not parameter:
                others.add((file, ast.unparse(ast.Raise(node.exc))))
    assert others == OTHER_RAISES


def test_every_error_is_on_the_page(nodes: list[tuple[str, ast.AST]]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    headings = [line.replace("\\", "") for line in page.splitlines() if line.startswith("### ")]
    errors_made = 0
    for file, node in nodes:
        if isinstance(node, ast.Call) and {"got", "fix"} & {keyword.arg for keyword in node.keywords}:
            if file == "errors.py" or not node.args:
                continue
            errors_made += 1
            parts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            words = [part for part in parts if isinstance(part, str) and part.strip()]
            assert any(all(word in heading for word in words) for heading in headings), f"{file}: {words}"
    assert errors_made > 100


def test_no_error_is_put_into_another_one_with_its_own_lines(nodes: list[tuple[str, ast.AST]]) -> None:
    """What may be an error of ours, or of many lines, goes through `one_line`; a cause that says one line need not."""
    found = set()
    for file, node in nodes:
        if not isinstance(node, ast.ExceptHandler) or node.name is None or node.type is None:
            continue
        kinds = {ast.unparse(kind).rpartition(".")[2] for kind in getattr(node.type, "elts", [node.type])}
        if kinds.isdisjoint(CLASSES | {"Exception", "BaseException", "RuntimeError", "SafetensorError"}):
            continue
        for keyword in ast.walk(node):
            if isinstance(keyword, ast.keyword) and keyword.arg == "got":
                values = [part.value for part in ast.walk(keyword.value) if isinstance(part, ast.FormattedValue)]
                found |= {file for value in [keyword.value, *values] if ast.unparse(value) == node.name}
    assert found == set()


def test_no_error_leaves_out_a_part(nodes: list[tuple[str, ast.AST]]) -> None:
    for file, node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
            assert {keyword.arg for keyword in node.keywords} == {"got", "expected", "fix"}, f"{file}:{node.lineno}"


@pytest.mark.parametrize(
    ("what", "heading"),
    [
        ('"One " "text."', "One text."),
        ('f"{path} is {self.kind!r}."', "`<path>` is `<kind>`."),
        (
            'f"{len(rows)} rows of {type(row).__name__}, {rows[0]}"',
            "`<number of rows>` rows of `<type of row>`, `<rows>`",
        ),
        ("f\"Not {', '.join(KINDS)}.\"", "Not a, b."),
        ("f\"Not {', '.join(map(str, rows))}.\"", "Not `<rows>`."),
        ('"Line " + f"{line + 1}."', "Line `<line>`."),
        ('"a * b < c_d, __init__ `x * y`"', r"a \* b \< c_d, \_\_init\_\_ `x * y`"),
        ("f\"Not {', '.join(row.names) or 'nothing'}.\"", "Not `<names>`."),
        ("MESSAGE", "A constant."),
    ],
)
def test_words_of_a_message(what: str, heading: str) -> None:
    source = 'MESSAGE = "A constant."\nKINDS = ("a", "b")\n'
    page = generate(a=f'{source}raise DataError({what}, got="got", expected="expected", fix="fix")')
    assert page == f"## DataError\n\nBad data.\n\n{section(heading)}"


def test_choices_are_all_listed() -> None:
    page = generate(
        a="""
        def check(path):
            if path:
                expected = "a file"
            else:
                expected = f"the folder {path}"
            for name in ("x", "y"):
                raise DataError(f"{name} is bad.", got=found(path), expected=expected, fix="a" if path else "b")

        def found(path):
            if path:
                return "nothing"
            return f"{path}"
        """
    )
    details = {"got": "`<path>` *or* nothing", "expected": "a file *or* the folder `<path>`", "cure": "a *or* b"}
    assert page.endswith(f"{section('x is bad.', **details)}\n\n{section('y is bad.', **details)}")


def test_words_come_from_the_calls_of_a_helper_also_through_others_and_other_modules() -> None:
    helper = """
        def check(name, value, *, least=1):
            _checked(name, f"at least {least}")

        def _checked(name, expected):
            raise DataError(f"{name} is bad.", got=name, expected=expected, fix="fix")
        """
    caller = """
        from package.helper import check as verify

        def run(other):
            verify("size", 3)
            verify("count", 3, least=0)
            verify(other.name, 3)
        """
    page = generate(helper=helper, caller=caller)
    assert page.startswith("## DataError")
    for name, least in (("count", 0), ("size", 1), ("`<name>`", 1)):
        assert section(f"{name} is bad.", name, f"at least {least}") in page


def test_a_class_given_to_a_helper_is_the_one_of_the_call() -> None:
    page = generate(
        a="""
        def refuse(error):
            raise error("No.", got="got", expected="expected", fix="fix")

        refuse(FileError)
        refuse(DataError)
        """
    )
    assert page == f"## DataError\n\nBad data.\n\n{section('No.')}\n\n## FileError\n\nBad file.\n\n{section('No.')}"


def test_a_class_named_in_a_message_is_the_one_of_the_call() -> None:
    page = generate(
        a="""
        def check(kind):
            raise DataError(f"No {kind.__name__}.", got="got", expected="expected", fix="fix")

        check(Path)
        """
    )
    assert page.endswith(section("No Path."))


def test_a_name_says_more_than_a_value_that_is_not_known() -> None:
    page = generate(
        a="""
        def check(lines):
            difference = ", ".join(lines)
            raise DataError(f"Differs: {difference}", got="got", expected="expected", fix="fix")
        """
    )
    assert page.endswith(section("Differs: `<difference>`"))


def test_messages_are_sorted_and_one_message_lists_all_its_causes() -> None:
    error = 'raise DataError("{}", got="got", expected="expected", fix="{}")\n'.format
    page = generate(a=error("b", "fix") + error("a", "first") + error("a", "second") + error("a", "first"))
    second = "- Got: got\n    - Expected: expected\n    - **Cure:** second"
    assert page.endswith(f"{section('a', cure='first')}\n{second}\n\n{section('b')}")


def test_a_text_that_grows_is_a_placeholder() -> None:
    page = generate(
        a="""
        def check(rows):
            names = "none"
            for row in rows:
                names = f"{names}, {row}"
            raise DataError(f"Bad: {names}", got="got", expected="expected", fix="fix")
        """
    )
    assert page.endswith(section("Bad: `<names>`"))
