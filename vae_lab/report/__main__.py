"""python -m vae_lab.report RUN...: one self-contained page about runs; sweep=DIR: about a sweep."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from vae_lab.runs.cli import run_command
from vae_lab.runs.command_line import runs_as_arguments
from vae_lab.runs.resume import run_dir_of
from vae_lab.runs.sweep import require_single_run
from vae_lab.utils.errors import UsageError, require_extra


def main() -> None:
    runs_as_arguments()
    run_command(report, config_name="report")


def report(config: DictConfig) -> None:
    require_single_run("report makes one page")
    require_extra("report", "jinja2", "plotly")
    if bool(config.runs) == bool(config.sweep):
        found = "both" if config.runs else "neither"
        raise UsageError(
            f"expected runs or a sweep, found {found}\n"
            "python -m vae_lab.report RUN [RUN ...], or python -m vae_lab.report sweep=DIR"
        )
    from vae_lab.report.page import MAX_LENGTH, write_file

    out = output_file(config)
    if config.sweep:
        from vae_lab.report.sweep_page import sweep_page

        page = sweep_page(config).encode()
    else:
        from vae_lab.report.run_page import run_page

        page = run_page(config).encode()
    write_file(out, page)
    advice = "; fewer runs side by side make it smaller" if len(page) > MAX_LENGTH else ""
    print(f"{out}: {len(page) / 1e6:.1f} MB{advice}")  # noqa: T201


def output_file(config: DictConfig) -> Path:
    """Where the page goes, and an older one is replaced. UsageError: a folder, or another kind of file."""
    beside = Path(config.sweep) if config.sweep else run_dir_of(config.runs[0]) if len(config.runs) == 1 else Path()
    out = Path(config.out or beside / "report.html")
    if out.is_dir():
        raise UsageError(f"out={out}: a folder\nexpected a file, such as {out / 'report.html'}")
    if out.suffix not in (".html", ".htm"):
        raise UsageError(f"out={out}: expected a file name that ends in .html")
    return out


if __name__ == "__main__":
    main()
