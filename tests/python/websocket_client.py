"""Python's websockets against a URL: messages of all sizes, pings, and a Close with a code."""

import asyncio
import json
import ssl
import sys

import websockets


async def main(url: str) -> None:
    context = None
    if url.startswith("wss"):
        context = ssl.create_default_context(cafile=sys.argv[2])
    seen = {}
    async with websockets.connect(url, ssl=context, max_size=None) as socket:
        for size in (0, 1, 125, 126, 65535, 65536, 1_000_000):
            data = bytes(size)
            await socket.send(data)
            assert await socket.recv() == data, size
        await socket.send(["in ", "three ", "fragments"])
        seen["text"] = await socket.recv()
        await (await socket.ping())
        await socket.close(4001, "done")
        seen["code"] = socket.close_code
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1]))
