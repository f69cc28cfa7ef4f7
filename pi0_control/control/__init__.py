"""Chunks to commands: what is due now, and the agent that plays a policy in Gymnasium."""

from pi0_control.control.agent import Pi0Agent
from pi0_control.control.chunking import ChunkingConfig, ChunkPlayer

__all__ = ["ChunkPlayer", "ChunkingConfig", "Pi0Agent"]
