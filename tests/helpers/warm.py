"""A process that has imported everything once and forks a child for each command: half a second instead of ten.

Reads a JSON request a line on stdin, answers a JSON line: {"pid": ...} at once, {"code": ...} when the child ends.
The child runs the command's own `main` under its own argv, environment, folder and output files.
"""

import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path


def child(request: dict) -> None:
    for descriptor, path in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    multiprocessing.set_start_method("fork")  # the trials of a search, too, start from what is imported
    sys.argv = [request["module"], *request["argv"]]
    sys.path[:0] = [str(Path.cwd()), *request["env"].get("PYTHONPATH", "").split(os.pathsep)]  # as `python -m` does
    code = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    for name in ("torch", "lightning.pytorch", "matplotlib.figure", "tensorboard", "torch.utils.tensorboard",
                 "vae_lab.fit_prior", "vae_lab.callbacks.run_summary", "vae_lab.second_stage.prior_fit"):  # fmt: skip
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would visit, and so copy, all of it
    print("{}", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
