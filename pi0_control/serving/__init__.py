"""A policy behind openpi's websocket protocol, and the client that plays such a policy from afar."""

from pi0_control.serving.client import RemotePolicy
from pi0_control.serving.server import PolicyServer, ServerConfig

__all__ = ["PolicyServer", "RemotePolicy", "ServerConfig"]
