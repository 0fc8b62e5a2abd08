"""An ASGI app as people write them: it knows nothing of sockets, its server does."""

import json
import os

WHOAMI = json.dumps(
    {
        "slot": os.environ.get("HOMESCAR_SLOT"),
        "generation": int(os.environ.get("HOMESCAR_GENERATION", "0")),
        "pid": os.getpid(),
    }
).encode()


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    headers = [(b"content-length", str(len(WHOAMI)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": WHOAMI})
