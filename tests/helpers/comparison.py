"""What a run left, beside what another one left."""

from collections import Counter
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog

from scripts.stress import differences as differences_in_results


def differences(run: Path, other: Path) -> list[str]:
    """Results that are not the same to the bit, and what TensorBoard shows twice or not at all."""
    ours, theirs = events(run), events(other)
    found = differences_in_results(run, other)
    # a test that was killed is logged again, at the same step
    found += [f"twice: {event}" for event, count in ours.items() if count > 1 and not event[0].startswith("test/")]
    return found + [f"event files: {event}" for event in sorted(ours.keys() ^ theirs.keys())]


def events(run: Path) -> Counter[tuple[str, int]]:
    """How often TensorBoard shows each scalar of training and evaluation: (tag, step)."""
    found: Counter[tuple[str, int]] = Counter()
    for path in sorted((run / "tensorboard").glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                # what TensorBoard does with a purge_step: it hides what was logged from that step on
                found = Counter({key: count for key, count in found.items() if key[1] < event.step})
            tags = (value.tag for value in event.summary.value)
            found.update((tag, event.step) for tag in tags if tag.startswith(("train/", "val/", "test/", "kl/")))
    return found
