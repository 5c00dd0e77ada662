"""Entry and exit of every command: Hydra runs the task; an error becomes a short message and an exit code.

0 completed, 1 failed run, 2 wrong request, 130 and 143 interrupted. HYDRA_FULL_ERROR=1 prints tracebacks instead of
messages.
"""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae_lab.config.schema import conf_dir, register
from vae_lab.runs.run_dir import Refusal, register_resolvers
from vae_lab.utils.errors import RunFailed, find_cause
from vae_lab.utils.signals import ForcedInterrupt, Interrupted

TaskFunction = Callable[[DictConfig], object]
FULL_ERROR = "HYDRA_FULL_ERROR"


def run_command(task: TaskFunction, config_name: str, config_path: str | None = None) -> None:
    """Compose the config `config_name` of conf/ with the command line and run the task on it, or on a sweep.

    Returns on success, else prints a message to stderr and exits with 1, 2, 130 or 143.
    """
    directory = config_path or conf_dir()
    sys.argv[1:] = [_without_option(word, directory) for word in sys.argv[1:]]
    register()
    register_resolvers()
    command = _Command(task, directory)
    code = command.run(hydra.main(version_base="1.3", config_path=directory, config_name=config_name)(command.job()))
    if code:
        sys.exit(code)


def run_as_first_argument() -> None:
    """Accept the run directory as the first argument: RUN for run=RUN."""
    if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"run={sys.argv[1]}"


def _without_option(word: str, directory: str) -> str:
    """GROUP=[] for GROUP=null, which Hydra refuses on the command line but not in a file."""
    group, _, option = word.partition("=")
    return f"{group}=[]" if option == "null" and group and Path(directory, group).is_dir() else word


class _Command:
    """One command: its task, and the exit codes of its failures."""

    def __init__(self, task: TaskFunction, directory: str) -> None:
        self.task, self.directory = task, directory
        self.full_error = os.environ.get(FULL_ERROR, "0")
        self.failures: dict[Exception, int] = {}  # of jobs, with their exit codes

    def run(self, main: Callable[[], object]) -> int:
        """Run Hydra's main and return the exit code."""
        os.environ[FULL_ERROR] = "1"  # so that Hydra raises errors instead of printing them
        try:
            main()
        except (KeyboardInterrupt, ForcedInterrupt) as stop:
            interrupted = find_cause(stop, ForcedInterrupt) or find_cause(stop, Interrupted)
            sys.stderr.write(f"{interrupted or 'interrupted'}\n")
            return interrupted.exit_code if interrupted else 130
        except (Exception, Refusal) as error:
            if error not in self.failures:
                return self._report(error, in_job=False)
        finally:
            os.environ[FULL_ERROR] = self.full_error
        return max(self.failures.values(), default=0)

    def job(self) -> TaskFunction:
        """The task as Hydra calls it: a failure is reported at once, and the other jobs of a sweep continue."""

        @functools.wraps(self.task)
        def job(config: DictConfig) -> object:
            os.environ[FULL_ERROR] = self.full_error  # for the child processes of the job
            try:
                return self.task(config)
            except Exception as error:
                if find_cause(error, Interrupted) or find_cause(error, ForcedInterrupt):
                    raise KeyboardInterrupt from error  # an Exception would only end this job of a sweep
                self.failures[error] = self._report(error, in_job=True)
                if HydraConfig.get().mode is RunMode.MULTIRUN:
                    raise  # the sweeper records the failure
                return None  # if raised, Hydra would add its own output
            finally:
                os.environ[FULL_ERROR] = "1"

        return job

    def _report(self, error: BaseException, in_job: bool) -> int:
        """Print a message, or the traceback of a bug; returns the exit code."""
        from vae_lab.config.messages import usage_message

        wrong_request = usage_message(error, self.directory, in_job)
        failed_run = find_cause(error, RunFailed)
        message = wrong_request or (str(failed_run) if failed_run else None)
        if message is None or self.full_error == "1":
            traceback.print_exception(error)
        else:
            lines = f"error: {_job_name() if in_job else ''}{message}".splitlines()
            sys.stderr.write("\n  ".join(lines) + "\n")
        return 2 if wrong_request else 1


def _job_name() -> str:
    """The prefix that names a job of a sweep; empty for a single run."""
    config = HydraConfig.get()
    if config.mode is not RunMode.MULTIRUN:
        return ""
    return f"job {config.job.num} ({' '.join(config.overrides.task)}): "
