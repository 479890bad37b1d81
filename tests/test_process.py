"""What a command leaves behind when it is asked to stop, or when its standard streams are gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotation_folders import export_to, write_masks
from conftest import GOLDEN

from dsgan_datasets.engines.ray import start
from dsgan_datasets.tools.cli import main
from dsgan_datasets.tools.process import Output, Stopped, stoppable

GENERATOR = str(GOLDEN / "sg2ada_fullsnapshot16.pkl")
CLI = [sys.executable, "-m", "dsgan_datasets.tools.cli"]
QUIET_CPU = {**os.environ, "OMP_NUM_THREADS": "1"}


def extended(value: str) -> Any:
    """A parameter of `make test-extended` only: each of these starts a process that imports torch."""
    return pytest.param(value, marks=pytest.mark.extended)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


pytestmark = pytest.mark.usefixtures("interruptible")


def stopped(command: list[str], folder: Path, begun: Callable[[], bool], number: int) -> tuple[int, str]:
    """Exit status and standard error of a command that gets a signal once it has begun."""
    child = subprocess.Popen([*CLI, *command], cwd=folder, stderr=subprocess.PIPE, text=True, env=QUIET_CPU)
    for _ in range(600):
        if begun() or child.poll() is not None:
            break
        time.sleep(0.05)
    assert child.poll() is None, "it has ended too soon"
    child.send_signal(number)
    child.send_signal(number)  # a second one, as from a terminal that closes, cuts nothing short
    _, told = child.communicate(timeout=60)
    return child.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", extended("SIGHUP"), extended("SIGINT")])
def test_a_stopped_export_leaves_nothing(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    command = ["export", "demo-faces", "deep/out", "--format", "folder", "--num-samples", "5000", "--device", "cpu"]
    begun = lambda: bool(list(tmp_path.glob("deep/.out.*.tmp/images/*.png")))  # noqa: E731
    if number == signal.SIGINT:  # a second Ctrl-C is a person's impatience, and may leave something
        with subprocess.Popen(
            [*CLI, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=QUIET_CPU
        ) as child:
            while not begun():
                time.sleep(0.05)
            child.send_signal(number)
            told = child.communicate(timeout=60)[1]
        code = child.returncode
    else:
        code, told = stopped(command, tmp_path, begun, number)
    assert code == 128 + number and files(tmp_path) == []
    assert "Traceback" not in told
    words = "interrupted" if number == signal.SIGINT else f"stopped by {name}"
    assert f"dsgan: {words}; nothing was written: run the same command again" in told


@pytest.mark.slow
def test_stopped_shards_are_kept_and_resumed(tmp_path: Path) -> None:
    command = ["shards", "write", "demo-faces", "out", "--num-samples", "900", "--samples-per-shard", "4"]
    code, told = stopped(command, tmp_path, (tmp_path / "out/shard-000002.tar").exists, signal.SIGTERM)
    assert code == 143 and "finished shards are kept: run the same command again to resume" in told
    assert not [name for name in files(tmp_path) if ".tmp" in name and ".tar" in name]


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*map(extended, ["fit", "cluster", "calibrate", "preview", "stats"]), "annotate"])
def test_every_long_command_stops_in_order(tmp_path: Path, verb: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if verb == "fit":
        export_to(tmp_path / "annotations")
        write_masks(tmp_path / "annotations")
    command = {
        "fit": ["fit", GENERATOR, "../annotations", "out", "--folds", "0", "--steps", "30000"],
        "cluster": ["cluster", "demo-faces", "out", "--num-samples", "100000"],
        "calibrate": ["calibrate", "demo-faces", "out", "--num-samples", "100000"],
        "annotate": ["annotate", "export", "demo-faces", "out", "--candidates", "100000"],
        "preview": ["preview", "demo-faces", "--num-samples", "1000"],
        "stats": ["stats", "demo-faces", "--num-samples", "100000"],
    }[verb]
    bar = tmp_path / "stderr"  # its progress bar says that the work has begun
    with bar.open("w") as stream:
        child = subprocess.Popen([*CLI, *command, "--device", "cpu"], cwd=work, stderr=stream, env=QUIET_CPU)
        for _ in range(1200):
            if "/" in bar.read_text() or child.poll() is not None:
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        child.wait(60)
    told = bar.read_text()
    assert child.returncode == 143 and "dsgan: stopped by SIGTERM; " in told and "Traceback" not in told
    assert files(work) == []


@pytest.mark.slow
def test_a_library_call_installs_no_handler_and_a_command_restores_it(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert main(["info", "nothing"]) == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    code = "import signal, dsgan_datasets, dsgan_datasets.tools.cli; print(signal.getsignal(15), signal.getsignal(1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"] or done.stdout.count("SIG_DFL") == 2


def test_ignored_and_own_handlers_stay() -> None:
    own = lambda number, frame: None  # noqa: E731
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, own)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)  # as under nohup
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGHUP, previous[0])
        signal.signal(signal.SIGTERM, previous[1])


def test_a_signal_is_raised_once_and_only_where_it_may_be() -> None:
    with pytest.raises(Stopped), stoppable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def elsewhere() -> None:
        with stoppable():
            results.append(signal.getsignal(signal.SIGTERM))

    results: list[object] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert results == [signal.SIG_DFL]


def test_a_forked_child_ends_as_ever() -> None:
    with stoppable():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


# Standard streams

SHELL = f"exec '{sys.executable}' -m dsgan_datasets.tools.cli"


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed", [*map(extended, ["2>&-", ">&-", ">&- 2>&-", "<&-", "2>/dev/full"]), "<&- >&- 2>&-", "2>&1 | true"]
)
@pytest.mark.parametrize(
    "command", [extended("stats demo-faces --num-samples 60"), "preview demo-faces --out stats.png"]
)
def test_work_is_done_without_standard_streams(tmp_path: Path, command: str, closed: str) -> None:
    """Also a long one, with progress bars; and what is opened later does not get the numbers of the closed ones."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"({SHELL} {command} {closed})"], cwd=tmp_path, env=QUIET_CPU, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "stats.png").read_bytes().startswith(b"\x89PNG") and files(tmp_path) == ["stats.png"]


@pytest.mark.slow
def test_a_full_disk_behind_standard_output_is_an_error(tmp_path: Path) -> None:
    command = f"{SHELL} info demo-faces > /dev/full"
    done = subprocess.run(command, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr == "dsgan: error: standard output: No space left on device\n"


def test_output_gives_up_for_good() -> None:
    class Gone:
        written = 0

        def write(self, text: str) -> int:
            self.written += 1
            raise BrokenPipeError

        def fileno(self) -> int:
            raise ValueError

    gone = Gone()
    out = Output(gone)  # type: ignore[arg-type]
    assert [out.write("a"), out.write("bc")] == [1, 2] and gone.written == 1 and out.error is None
    out.flush()
    assert Output(None).write("nothing") == 7


def test_a_signal_while_ray_connects_ends_what_has_begun() -> None:
    """In the main thread Ray lost it, and `dsgan serve` stayed."""

    class Ray:
        ended = False

        def init(self, **options: Any) -> None:
            with contextlib.suppress(BaseException):  # as somewhere in Ray
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)

        def is_initialized(self) -> bool:
            return not self.ended

        def shutdown(self) -> None:
            self.ended = True

    ray = Ray()
    with stoppable(), pytest.raises(Stopped):
        start(ray)
    assert ray.ended
