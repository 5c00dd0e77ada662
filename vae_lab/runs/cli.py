"""Entry and exit of every command: Hydra runs the task; an error becomes a short message and an exit code.

0 completed, 1 failed run, 2 wrong request, 130 and 143 interrupted. HYDRA_FULL_ERROR=1 prints tracebacks instead of
messages.
"""

import atexit
import functools
import gc
import io
import os
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.schema import conf_dir
from vae_lab.runs.command_line import hydra_words
from vae_lab.runs.processes import is_first_process
from vae_lab.runs.run_dir import Refusal, register_with_hydra
from vae_lab.runs.sweep import RESUME, SWEEP_FILE, record_failure, report_failures
from vae_lab.utils.errors import RunFailed, UsageError, find_cause
from vae_lab.utils.signals import ForcedInterrupt, Interrupted

T = TypeVar("T")
TaskFunction = Callable[[DictConfig], object]
FULL_ERROR = "HYDRA_FULL_ERROR"


def run_command(task: TaskFunction, config_name: str, config_path: str | None = None) -> None:
    """Compose the config `config_name` of conf/ with the command line and run the task on it, or on a sweep.

    Returns on success, else prints a message to stderr and exits with 1, 2, 130 or 143.
    """
    ignore_closed_streams()
    require_cache()
    directory = config_path or conf_dir()
    register_with_hydra()
    command = _Command(task, directory)
    code = command.run(hydra.main(version_base="1.3", config_path=directory, config_name=config_name)(command.job()))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code:
        sys.exit(code)


def run_in_process(task: Callable[[DictConfig], T], config_name: str, request: Sequence[str | DictConfig]) -> T:
    """Run a task as the command would, in a program or a notebook, and return its result.

    request: overrides, or a composed config (and overrides of its keys).
    UsageError: a wrong request; other exceptions are raised as they are.
    """
    from vae_lab.config.messages import usage_message

    overrides = [word for word in request if isinstance(word, str)]
    configs = [config for config in request if isinstance(config, DictConfig)]
    if wrong := [str(it) for it in request if not isinstance(it, str | DictConfig) or str(it).startswith("-")]:
        raise UsageError(f"{wrong[0]}: expected overrides, such as data=mnist\nsweeps run on the command line")
    if len(configs) > 1:
        raise UsageError(f"found {len(configs)} configs, expected one")
    require_cache()
    register_with_hydra()
    results: list[T] = []
    argv, full_error = sys.argv, os.environ.get(FULL_ERROR)
    sys.argv, os.environ[FULL_ERROR] = [argv[0], *hydra_words(overrides, conf_dir())], "1"
    job = functools.wraps(task)(lambda config: results.append(task(config)))
    try:
        with _primary_config(configs, config_name) as directory:
            hydra.main(version_base="1.3", config_path=directory, config_name=config_name)(job)()
    except (Exception, Refusal) as error:
        if message := usage_message(error, conf_dir(), in_job=True):
            raise UsageError(message) from error
        raise
    finally:
        sys.argv = argv
        os.environ.pop(FULL_ERROR) if full_error is None else os.environ.update({FULL_ERROR: full_error})
    return results[0]


@contextmanager
def _primary_config(configs: Sequence[DictConfig], name: str) -> Iterator[str]:
    """The directory of the primary config `name`: conf/, or a temporary one with a composed config under that name."""
    if not configs:
        yield conf_dir()
        return
    primary = OmegaConf.masked_copy(configs[0], [str(key) for key in configs[0] if key != "hydra"])
    OmegaConf.set_struct(primary, False)
    OmegaConf.set_readonly(primary, False)
    primary.defaults = ["schema", {"hydra": "default"}, "_self_"]
    primary.hydra = {"searchpath": [f"file://{conf_dir()}"]}
    with tempfile.TemporaryDirectory(prefix="vae_lab-") as directory:
        OmegaConf.save(primary, Path(directory, f"{name}.yaml"))
        yield directory


def compose_config(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The config of conf/ with overrides as on the command line. UsageError: a wrong request."""
    from vae_lab.config.messages import usage_message

    register_with_hydra()
    try:
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            return hydra.compose(config_name, hydra_words(overrides, conf_dir()))
    except Exception as error:
        if message := usage_message(error, conf_dir()):
            raise UsageError(message) from error
        raise


class _LenientFile(io.FileIO):
    """Drops what it cannot write: the reader of the pipe has ended, the terminal was closed."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def ignore_closed_streams() -> None:
    """Let the command go on when nobody reads its stdout or stderr any more: `| head`, `2>&-`, a closed terminal."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(
            stream, io.TextIOWrapper
        ):  # else of a notebook, a test
            file = io.BufferedWriter(_LenientFile(number, "w", closefd=False))
            lenient = io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
            setattr(sys, name, lenient)


def require_cache() -> None:
    """Set VAE_LAB_CACHE to a temporary folder for this command if the home cannot be written."""
    try:
        home = Path.home() / ".cache" / "vae_lab"
        exists = next(path for path in (home, *home.parents) if path.exists())
    except (RuntimeError, OSError):  # no home, or one that cannot be looked into
        exists = Path(os.devnull)
    if "VAE_LAB_CACHE" not in os.environ and not (exists.is_dir() and os.access(exists, os.W_OK | os.X_OK)):
        os.environ["VAE_LAB_CACHE"] = folder = tempfile.mkdtemp(prefix="vae_lab-cache-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        sys.stderr.write(f"{exists} cannot be written: decoded pictures are kept until the end only (VAE_LAB_CACHE)\n")


class _Command:
    """One command: its task, and the exit codes of its failures."""

    def __init__(self, task: TaskFunction, directory: str) -> None:
        self.task, self.directory = task, directory
        self.full_error = os.environ.get(FULL_ERROR, "0")
        self.code = 0  # the largest exit code of the jobs in this process

    def run(self, main: Callable[[], object]) -> int:
        """Run Hydra's main and return the exit code."""
        os.environ[FULL_ERROR] = "1"  # so that Hydra raises errors instead of printing them
        try:
            sys.argv[1:] = hydra_words(sys.argv[1:], self.directory)
            main()
        except (KeyboardInterrupt, ForcedInterrupt) as stop:
            interrupted = find_cause(stop, ForcedInterrupt) or find_cause(stop, Interrupted)
            sys.stderr.write(f"{interrupted or 'interrupted'}\n")
            self._report_sweep(complete=False)
            return interrupted.exit_code if interrupted else 130
        except (Exception, Refusal) as error:
            code = self._report(error)[1]
            return max(code, self.code, self._report_sweep(complete=False))
        finally:
            os.environ[FULL_ERROR] = self.full_error
        return max(self.code, self._report_sweep())

    def job(self) -> TaskFunction:
        """The task as Hydra calls it, maybe in a worker of a launcher that runs several jobs of a sweep in turn.

        A failure is reported at once, and the other jobs of a sweep continue.
        """

        @functools.wraps(self.task)
        def job(config: DictConfig) -> object:
            before = dict(os.environ)
            os.environ[FULL_ERROR] = self.full_error  # for the child processes of the job
            try:
                return self.task(config)
            except Exception as error:
                if find_cause(error, Interrupted) or find_cause(error, ForcedInterrupt):
                    raise KeyboardInterrupt from error  # an Exception would only end this job of a sweep
                message, code = self._report(error, in_job=True)
                self.code = max(self.code, code)
                if HydraConfig.get().mode is RunMode.MULTIRUN:
                    record_failure(Path(HydraConfig.get().runtime.output_dir), message, code)
                return None  # if raised, Hydra would add its own output, and end a sweep
            finally:  # what the job has set for itself, and its model, are not for the next one
                os.environ.clear()
                os.environ.update(before)
                if HydraConfig.get().mode is RunMode.MULTIRUN:
                    gc.collect()

        return job

    def _report(self, error: BaseException, in_job: bool = False) -> tuple[str, int]:
        """Print a message, or the traceback of a bug; returns the message and the exit code."""
        from vae_lab.config.messages import usage_message

        wrong_request = usage_message(error, self.directory, in_job)
        if wrong_request and not is_first_process():
            return wrong_request, 2  # the first process has the same message
        failed_run = find_cause(error, RunFailed)
        message = wrong_request or (str(failed_run) if failed_run else None)
        if message is None or self.full_error == "1":
            traceback.print_exception(error)
        else:
            where = "" if is_first_process() else f"process {os.environ['LOCAL_RANK']}: "
            if in_job and (config := HydraConfig.get()).mode is RunMode.MULTIRUN:
                where += f"job {config.job.num} ({' '.join(config.overrides.task)}): "
            lines = f"error: {where}{message}".splitlines()
            sys.stderr.write("\n  ".join(lines) + "\n")
        return message or f"{type(error).__name__}: {error}", 2 if wrong_request else 1

    def _report_sweep(self, complete: bool = True) -> int:
        """Print the failed jobs of a sweep, and how it is continued; returns their largest exit code, 0 without any."""
        if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
            return 0
        folder = Path(HydraConfig.get().sweep.dir)
        text, code = report_failures(folder)
        if (folder / SWEEP_FILE).is_file() and (text or not complete):
            text += f"to run what is left, add to the same command: {shlex.quote(f'{RESUME}={folder}')}\n"
        sys.stderr.write(text)
        return code
