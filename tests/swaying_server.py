"""A server whose policy sways: ``python tests/swaying_server.py PORT``; prints where it listens."""

import asyncio
import sys
import time
from dataclasses import replace
from typing import Any

from swaying_policy import SwayingPolicy

from pi0_control.serving import PolicyServer, ServerConfig
from pi0_control.types import ActionChunk, Observation


class ClockedPolicy(SwayingPolicy):
    """Sways by the clock, since stamps do not reach a server."""

    def infer(self, observation: Observation, **options: Any) -> ActionChunk:
        return super().infer(replace(observation, stamp_s=time.monotonic()), **options)


async def serve(port: int) -> None:
    async with PolicyServer(ClockedPolicy(), ServerConfig(port=port)) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
