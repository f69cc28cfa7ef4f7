"""What does not fit between a policy and what a robot shows, and what to change."""

from pi0_control.doctor.examine import Examination, examine
from pi0_control.doctor.findings import Finding
from pi0_control.doctor.recording import Recording

__all__ = ["Examination", "Finding", "Recording", "examine"]
