"""The most memory that was held in each phase of training: on a GPU what torch has allocated, on a
CPU what the process has resident."""

from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_OF_PROCESS = "VmHWM:"


class MemoryPeaks:
    """Keeps the highest bytes of each phase. Entering a phase ends the one before."""

    def __init__(self) -> None:
        """No phase has begun."""
        self.phase: str | None = None
        self.peaks: dict[str, int] = {}

    def enter(self, phase: str | None) -> None:
        """Begin a phase; None ends the last one."""
        if self.phase is not None:
            self.peaks[self.phase] = max(peak_bytes(), self.peaks.get(self.phase, 0))
        self.phase = phase
        reset_peak()

    def take(self) -> dict[str, int]:
        """Return the peaks since the last time, by phase."""
        self.enter(self.phase)
        taken, self.peaks = self.peaks, {}
        return taken


def peak_bytes() -> int:
    """Return the most bytes held since `reset_peak`; 0 where the system does not tell."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if not STATUS.exists():
        return 0
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(PEAK_OF_PROCESS)), 0)


def reset_peak() -> None:
    """Let the peak begin anew at what is held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif RESET.exists():
        try:
            RESET.write_text("5", encoding="ascii")  # proc(5): the peak of the resident set
        except OSError:  # not permitted in some containers: peaks then only rise
            return
