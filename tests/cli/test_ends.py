"""How commands end: one line and an exit code whatever happened, on terminals and pipes of every kind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mmcl.cli import config as config_command
from mmcl.cli.output import print_table, say
from mmcl.runtime.errors import DivergedError, MmclError
from mmcl.runtime.printable import printable, short_repr, shortened


class PanicException(BaseException):
    """What a panic in a Rust library is raised as."""


def _raises(error):
    def schema(*_, **__):
        raise error

    return schema


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MmclError("a: wrong\nmend it"), 2, "error: a: wrong mend it"),
        (DivergedError("the loss became nan"), 1, "error: the loss became nan"),
        (PanicException("index out of bounds"), 1, "error: unforeseen PanicException: index out of bounds; --debug"),
        (TypeError("'int' object is not\nsubscriptable"), 1, "error: unforeseen TypeError: 'int' object is not; "),
        (KeyError(), 1, "error: unforeseen KeyError: no message; --debug shows the traceback"),
        (RecursionError("maximum recursion depth exceeded"), 2, "error: something that was read is nested too deeply"),
        (MemoryError(), 2, "error: not enough memory; lower the batch size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), 2, "not enough memory ([enf"),
        (RuntimeError("std::bad_alloc"), 2, "not enough memory (std::bad_alloc)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "not enough memory (CUDA out of memory"),
        (RuntimeError("can't start new thread"), 2, "not enough memory (can't start new thread)"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 2, "not enough memory (libtorch"),
        (ImportError("cannot import name 'x'"), 1, "unforeseen ImportError: cannot import name 'x'"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 2, "the disk is full (x.bin); free some space"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "too many open files; raise the limit (ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "x.bin"), 2, "x.bin: Permission denied; --debug shows"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 999), 2, "characters) …"),
        (EOFError("Compressed file ended"), 1, "unforeseen EOFError: Compressed file ended"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "error: [Errno 32] Broken pipe"),  # not stdout's
        (ValueError("x" * 1_000_000), 1, "characters) …"),
        (ValueError("\x1b]0;title\x07\u202e"), 1, "\\x1b]0;title\\x07\\u202e"),
        (KeyboardInterrupt(), 130, "interrupted; what is on disk is complete"),
        (KeyboardInterrupt("interrupted at step 3"), 130, "interrupted at step 3"),
    ],
)
def test_whatever_stops_a_command_is_one_line_and_an_exit_code(mmcl_, monkeypatch, error, code, said):
    monkeypatch.setattr(config_command, "json_", SimpleNamespace(dumps=_raises(error)))
    got, out, err = mmcl_("config", "schema")
    assert got == code
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert len(err) < 2500
    assert "\x1b" not in err


def test_debug_shows_the_traceback_before_the_same_line_and_code(mmcl_, monkeypatch):
    monkeypatch.setattr(config_command, "json_", SimpleNamespace(dumps=_raises(PanicException("oh \x1b[31m"))))
    code, _, err = mmcl_("config", "schema", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: unforeseen PanicException: oh \\x1b[31m")
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a red cat\ton\na mat", "a red cat\ton\na mat"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b31m\x85\x7f", "\\x9b31m\\x85\\x7f"),
        ("over\r", "over\\r"),
        ("a\u202eb\u2066c\u2069", "a\\u202eb\\u2066c\\u2069"),
        ("caf\udce9", "caf\\udce9"),
        ("日本 é 👩‍👩‍👧 نص\u200cها", "日本 é 👩‍👩‍👧 نص\u200cها"),
    ],
)
def test_printable_escapes_what_acts_on_a_terminal_and_nothing_else(capsys, text, safe):
    assert printable(text) == safe
    say(text)
    assert capsys.readouterr().out == safe + "\n"
    print_table(["a", f"b {text}"], [["x", text]], title=text)
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\x85\x7f\r\u202e\u2066\u2069")


def test_values_in_messages_are_cut():
    assert shortened("x" * 1000, 100) == "x" * 75 + "… (900 characters) …" + "x" * 25
    assert short_repr("x") == "'x'"
    assert len(short_repr("\x00" * 10**6)) < 1000
    assert short_repr(10**5000) == "a number of about 5,000 digits"
    nested = []
    nested.append(nested)
    assert len(short_repr(nested)) < 200
    assert short_repr([1, 2]) == "[1, 2]"
    assert short_repr({"a": 1}) == "a section"


def _ended(stdout, **more):
    command = [sys.executable, "-m", "mmcl", "config", "schema"]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, **more)


def test_a_reader_that_has_enough_ends_the_command_quietly():
    read, write = os.pipe()
    os.close(read)
    done = _ended(write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_device_is_said():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = _ended(full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the disk is full")
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_or_narrow_stdout_is_no_error():
    probe = (
        "import sys; from mmcl.cli.ends import prepare_streams; from mmcl.cli.output import say, print_table;"
        "prepare_streams(); say('日本 \\udce9'); print_table(['naïve'], [['日本 \\U0001f600']])"
    )
    narrow = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False
    )
    assert (narrow.returncode, narrow.stderr) == (0, b"")
    assert narrow.stdout.startswith(b"\\u65e5\\u672c \\udce9")
    closed = subprocess.run(["sh", "-c", f'{sys.executable} -c "$0" >&-', probe], capture_output=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")
