"""A child process that loads files under limits and tells what happened: what it did, how long, how much memory.

The parent sends one JSON line a file and gets one back. An audit hook in the child records everything that running code
would do; a signal ends a load that takes too long, even inside C; the address space is limited.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds of the processor, whatever else it does; a load that only waits may take ten times that.
TIMEOUT = float(os.environ.get("WATCHED_TIMEOUT", "20"))
ADDRESS_SPACE = 2 * 2**30  # bytes, beyond what the process has when it is ready

#: Audit events of a program that is started.
PROGRAMS = ("subprocess.", "os.exec", "os.system", "os.spawn", "os.posix_spawn", "os.fork", "os.startfile", "pty.")
#: Audit events that nothing which only reads a file should raise, by the beginning of their names.
FORBIDDEN = (
    *("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "webbrowser.", "urllib.", "ftplib.", "http.", "pty."),
    *("exec", "compile", "import", "marshal.", "code.", "function.__new__", "pickle.find_class", "cpython."),
)
_HARMLESS = ("os.listdir", "os.scandir", "os.walk")
#: A dataset keeps its epoch in numbers that processes share, which ctypes lays out; nothing is loaded or called.
_SHARED_NUMBERS = ("ctypes.cdata", "ctypes.cdata/buffer", "ctypes.addressof")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        kind: "loaded", "refused" (with the error that the library documents), "error" (another one) or "died".
        message: of the exception.
        events: forbidden audit events while it was loaded.
        seconds: of the processor.
        megabytes: peak of resident memory above what there was before.
    """

    kind: str
    message: str = ""
    events: tuple[str, ...] = ()
    seconds: float = 0.0
    megabytes: float = 0.0

    def violations(self, size: int, most_megabytes: float | None = None) -> list[str]:
        """What a reader must not do with a file of `size` bytes, in words; by default it may take three times that."""
        most = 3 * size / 1e6 + 200 if most_megabytes is None else most_megabytes
        found = [f"{self.kind}: {self.message}"] if self.kind in ("error", "died") else []
        found += [f"audit event {event}" for event in self.events]
        if self.megabytes > most:
            found.append(f"{self.megabytes:.0f} MB for a file of {size / 1e6:.1f} MB")
        if self.kind == "refused" and not all(line.isprintable() and len(line) < 2000 for line in self._lines):
            found.append(f"not clear lines: {self.message[:2000]!r}")
        return found

    @property
    def _lines(self) -> list[str]:
        """An AnnotationError has a line for each mistake; everything else has one."""
        lines = self.message.split("\n")
        return lines if len(self.message) > 10 else [""]


class Watched:
    """The child; starts on first use and again after it died.

    Args:
        folder: its working directory: what a payload writes to a relative path appears here.
        warm_up: (how, path) that are loaded before the limits hold, so that everything needed is imported.
    """

    def __init__(self, folder: Path, warm_up: list[tuple[str, Path]]) -> None:
        self.folder = folder
        self._warm_up = [(how, str(path)) for how, path in warm_up]
        self._child: subprocess.Popen[str] | None = None

    def load(self, how: str, path: Path) -> Outcome:
        """Load a file: `how` is a key of `LOADERS`."""
        try:
            answer = self._ask((how, str(path)))
        except (BrokenPipeError, EOFError):
            code = self.close()
            late = code in (-signal.SIGPROF, -signal.SIGALRM)
            return Outcome("died", "took too long" if late else f"exit status {code}")
        return Outcome(**{**answer, "events": tuple(answer["events"])})

    def _ask(self, question: Any) -> Any:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve())],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                self._ask(self._warm_up)  # the first line is answered when it is ready
            except EOFError:
                raise RuntimeError("the child does not start; what it wrote says why") from None
        assert self._child.stdin is not None and self._child.stdout is not None
        print(json.dumps(question), file=self._child.stdin, flush=True)
        if not (line := self._child.stdout.readline()):
            raise EOFError
        return json.loads(line)

    def close(self) -> int:
        """End the child; its exit status."""
        if self._child is None:
            return 0
        child, self._child = self._child, None
        try:
            child.communicate(timeout=30)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            child.kill()
        return child.wait()


# The child


def _plain_pickle(path: str) -> Any:
    """For comparison: what the reader must not be."""
    import pickle

    return pickle.loads(Path(path).read_bytes())


def _shards(path: str) -> None:
    """Every record, by its number and in order."""
    from dsgan_datasets import ShardDataset, ShardError, ShardMapDataset

    errors = []
    by_number = ShardMapDataset(path)
    for number in range(min(len(by_number), 100)):
        try:
            by_number[number]
        except ShardError as error:
            errors.append(error)
    for _ in ShardDataset(path):
        pass
    if errors:
        raise errors[0]


def _command(path: str) -> None:
    """A command line, a list in a JSON file, in the folder of that file."""
    from dsgan_datasets.tools.cli import main

    written = io.StringIO()
    here = os.getcwd()
    os.chdir(Path(path).parent)
    try:
        with contextlib.redirect_stderr(written), contextlib.redirect_stdout(written):
            status = main(json.loads(Path(path).read_text()))
    except SystemExit as end:
        status = end.code
    finally:
        os.chdir(here)
    said = written.getvalue()
    if "Traceback" in said or "internal error" in said or status not in (0, 1, 2):
        raise RuntimeError(f"status {status}: {said[-300:]}")
    if status:
        raise ValueError(said.strip().splitlines()[-1] if said.strip() else "")


def loaders() -> dict[str, Callable[[str], Any]]:
    """How a file may be loaded."""
    from dsgan_datasets import LabeledGenerator, load_generator, load_interpreter
    from dsgan_datasets.annotations import load_annotations
    from dsgan_datasets.checkpoints.torch_file import read_torch_file

    return {
        "annotations": load_annotations,
        "partly annotated": lambda path: load_annotations(path, allow_missing=True, min_region=3),
        "given annotations": lambda path: load_annotations(
            path, files=next(Path(path).glob("given*")), allow_missing=True
        ),
        "shards": _shards,
        "command": _command,
        "generator": lambda path: load_generator(path, device="cpu"),
        "interpreter": lambda path: load_interpreter(path, device="cpu"),
        "labeled": lambda path: LabeledGenerator.from_pretrained(path, device="cpu"),
        "torch file": lambda path: read_torch_file(Path(path)),
        "plain pickle": _plain_pickle,
    }


def _documented(how: str) -> tuple[type[BaseException], ...]:
    """The errors that the library promises for such a file."""
    from dsgan_datasets import CheckpointError, ShardError
    from dsgan_datasets.annotations import AnnotationError

    if how == "command":
        return (ValueError,)
    if "annotat" in how:
        return (AnnotationError,)
    return (ShardError,) if how == "shards" else (CheckpointError,)


_ORDERS = ("-le", "-be")


class _Hook:
    """Records forbidden events while `active`."""

    def __init__(self) -> None:
        self.active = False
        self.may_write = False  # then only starting a program is forbidden
        self.events: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if self.may_write:
            forbidden = event.startswith(PROGRAMS)
        else:
            writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
            forbidden = writes or (event.startswith(FORBIDDEN) and event not in _HARMLESS + _SHARED_NUMBERS)
            # ast.literal_eval, with which numpy reads the header of an .npy file: it makes a tree and runs nothing.
            forbidden = forbidden and not (event == "compile" and arguments[1] == "<unknown>")
        if forbidden and len(self.events) < 20:
            self.events.append(f"{event} {str(arguments)[:100]}")


def _status(field: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1e3


def _set_alarms(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)


def _watch(how: str, load: Callable[[str], Any], path: str, hook: _Hook) -> dict[str, Any]:
    documented = _documented(how)
    hook.may_write = how == "command"
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = _status("VmRSS"), time.process_time()
    kind, message, hook.events = "loaded", "", []
    _set_alarms(TIMEOUT)
    hook.active = True
    try:
        load(path)
    except documented as error:
        kind, message = "refused", str(error)
    except BaseException as error:
        kind, message = "error", f"{type(error).__name__}: {str(error)[:500]}"
    finally:
        hook.active = False
        _set_alarms(0)
    seconds = time.process_time() - start
    memory = {"megabytes": _status("VmHWM") - before}
    return {"kind": kind, "message": message, "events": hook.events, "seconds": seconds, **memory}


def main() -> None:
    """Answer until the input ends."""
    import torch

    answers = sys.stdout
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    load, hook = loaders(), _Hook()
    for how, path in json.loads(sys.stdin.readline()):
        load[how](path)
    # Of names in zip files and in old pickles, of JSON that an editor saved; imported when first needed.
    for codec in (
        "cp437",
        "raw_unicode_escape",
        "utf-8-sig",
        *(f"utf-{bits}{order}" for bits in (16, 32) for order in ("", *_ORDERS)),
    ):
        "x".encode(codec)
    limit = int(_status("VmSize") * 1e3) * 1024 + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("[]", file=answers, flush=True)
    for line in sys.stdin:
        how, path = json.loads(line)
        print(json.dumps(_watch(how, load[how], path, hook)), file=answers, flush=True)


if __name__ == "__main__":
    main()
