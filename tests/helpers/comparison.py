"""What a run left, beside what another one left."""

from collections import Counter
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from scripts.stress import differences as differences_in_results


def differences(run: Path, other: Path) -> list[str]:
    """Results that are not the same to the bit, and what TensorBoard shows twice or not at all."""
    ours, theirs = events(run), events(other)
    found = differences_in_results(run, other)
    found += [f"twice in the event files: {event}" for event, count in ours.items() if count > 1]
    return found + [f"event files: {event}" for event in sorted(ours.keys() ^ theirs.keys())]


def events(run: Path) -> Counter[tuple[str, int]]:
    """How often TensorBoard's files hold each scalar of training and evaluation: (tag, step)."""
    found: Counter[tuple[str, int]] = Counter()
    for path in sorted((run / "tensorboard").glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            tags = (value.tag for value in event.summary.value)
            found.update((tag, event.step) for tag in tags if tag.startswith(("train/", "val/", "test/", "kl/")))
    return found
