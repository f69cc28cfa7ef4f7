"""Chunks to commands: what is due now, what may be commanded, the agent that plays a policy in Gymnasium."""

from pi0_control.control.agent import Pi0Agent
from pi0_control.control.chunking import ChunkingConfig, ChunkPlayer
from pi0_control.control.mapping import Affine, Entries, EnvironmentMapping, Layout, Picture
from pi0_control.control.recorder import Recorder, Recording, replay
from pi0_control.control.safety import Safety, SafetyConfig

__all__ = [
    "Affine",
    "ChunkPlayer",
    "ChunkingConfig",
    "Entries",
    "EnvironmentMapping",
    "Layout",
    "Pi0Agent",
    "Picture",
    "Recorder",
    "Recording",
    "Safety",
    "SafetyConfig",
    "replay",
]
