"""A policy behind openpi's websocket protocol, and the client that plays such a policy from afar."""
