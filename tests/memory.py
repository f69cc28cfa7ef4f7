"""What this process takes, for scripts that watch it grow."""

from pathlib import Path


def memory_mb(field: str = "VmRSS") -> float:
    """``VmRSS``, memory now [MiB], or ``VmHWM``, the most it ever was; files mapped into it included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.partition(f"{field}:")[2].split()[0]) / 1024
