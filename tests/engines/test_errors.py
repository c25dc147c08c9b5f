"""The error tree: what a message looks like, what the codes are, and that errors survive being copied and pickled."""

import copy
import pickle
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samrt_engines import errors
from samrt_engines.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    ExportError,
    HubError,
    ImageError,
    InputError,
    MissingExtraError,
    ProviderError,
    SamrtError,
    pip_line,
)


def descendants(kind: type[SamrtError]) -> Iterator[type[SamrtError]]:
    """Our own classes only: a plug-in's subclass is no part of the tree."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from descendants(child)


TREE = tuple(descendants(SamrtError))
PARTS = st.one_of(st.none(), st.text())


def test_message_has_its_parts_in_order() -> None:
    error = ImageError("picture is empty", got="0 x 7 pixels", expected="at least 1 x 1", fix="pass another picture")
    assert str(error) == "picture is empty | got: 0 x 7 pixels | expected: at least 1 x 1 | fix: pass another picture"
    assert (error.what, error.got, error.expected, error.fix, error.code) == (
        "picture is empty",
        "0 x 7 pixels",
        "at least 1 x 1",
        "pass another picture",
        "image",
    )


def test_absent_parts_leave_no_trace() -> None:
    assert str(BundleError("no manifest")) == "no manifest"
    assert str(BundleError("no manifest", fix="samrt export ...")) == "no manifest | fix: samrt export ..."
    assert str(BundleError("bad size", got="", expected="12")) == "bad size | got:  | expected: 12"


def test_only_what_failed_is_positional() -> None:
    with pytest.raises(TypeError, match="positional"):
        SamrtError("what", "got")  # type: ignore[misc]


def test_the_docstring_draws_the_tree() -> None:
    """Every class stands in the drawing, under its parent, with its code; and nothing else does."""
    drawn: list[tuple[str, str, str]] = []
    above = ["Exception"]  # from the root's parent down to the line before
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+Error|Cancelled)(?: \(\w+\))? +([a-z.]+) ", line):
            depth = len(match[1]) // 4 + 1
            above[depth:] = [match[2]]
            drawn.append((match[2], match[3], above[depth - 1]))
    assert drawn == [(kind.__name__, kind.code, kind.__bases__[0].__name__) for kind in TREE]


def test_codes_are_unique_and_start_with_the_parents_code() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    for parent in (BundleError, CheckpointError, BackendError, ExportError):
        assert all(kind.code.startswith(parent.code) for kind in descendants(parent))


def test_the_usual_builtins_catch_them() -> None:
    assert all(issubclass(kind, ValueError) for kind in descendants(InputError))
    assert issubclass(MissingExtraError, ImportError)
    assert issubclass(HubError, CheckpointError)
    assert issubclass(ProviderError, BackendError)


@pytest.mark.parametrize("kind", TREE)
@given(what=st.text(), got=PARTS, expected=PARTS, fix=PARTS)
def test_pickled_and_copied_errors_are_equal(
    kind: type[SamrtError], what: str, got: str | None, expected: str | None, fix: str | None
) -> None:
    error = kind(what, got=got, expected=expected, fix=fix)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert (twin.what, twin.got, twin.expected, twin.fix, twin.code) == (what, got, expected, fix, kind.code)


def test_missing_extra_names_the_pip_line() -> None:
    error = MissingExtraError.for_package("av", extra="video", purpose="to read videos")
    assert (
        str(error) == 'the package av is needed to read videos | got: not installed | fix: pip install "samrt[video]"'
    )
    assert pip_line("cpu") == 'pip install "samrt[cpu]"'
