"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, nothing for two seconds."""

import sys
from typing import Protocol, TextIO

PATIENCE = 2.0  # seconds before anything is shown
BAR_EVERY = 0.25  # seconds
LINE_EVERY = 5.0  # seconds


class Reporter(Protocol):
    """Told after every step how far the run is; `seconds` are those of this call."""

    def update(self, fraction: float, text: str, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Shows nothing."""

    def update(self, fraction: float, text: str, seconds: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """A plain line every few seconds, and the last state when a line was shown before."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self.label, self.stream = label, stream
        self.due, self.shown, self.last = PATIENCE, "", ""

    def update(self, fraction: float, text: str, seconds: float) -> None:
        self.last = f"{text}, {seconds:.0f} s"
        if seconds >= self.due:
            self.due = seconds + LINE_EVERY
            self.shown = self.last
            self.note(self.last)

    def note(self, text: str) -> None:
        print(f"{self.label}: {text}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.shown and self.shown != self.last:
            self.note(self.last)


class Bar:
    """A bar of the rich library, drawn from this thread only, so no second thread takes time from the run."""

    def __init__(self, label: str, stream: TextIO, width: int | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(file=stream, force_terminal=True, width=width)
        self.bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=console, auto_refresh=False)
        self.task = self.bar.add_task(label, total=1.0, text="")
        self.due, self.label = PATIENCE, label

    def update(self, fraction: float, text: str, seconds: float) -> None:
        self.bar.update(self.task, completed=min(fraction, 1.0), text=text)
        if seconds >= self.due:
            self.due = seconds + BAR_EVERY
            self.bar.start()
            self.bar.refresh()

    def note(self, text: str) -> None:
        self.bar.console.print(f"{self.label}: {text}", markup=False, highlight=False)

    def close(self) -> None:
        if self.bar.live.is_started:
            self.bar.refresh()
            self.bar.stop()


def choose_reporter(progress: bool | None, label: str, stream: TextIO | None = None) -> Reporter:
    """Nothing for False; else a bar when the stream (standard output) is a terminal, and plain lines."""
    stream = stream or sys.stdout
    if progress is False:
        return Silent()
    return Bar(label, stream) if stream.isatty() else Lines(label, stream)
