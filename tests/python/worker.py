"""A Python worker: asyncio and nothing but the standard library.

It serves lines: `whoami`, `block SECONDS` (stops its event loop), and all else comes back as it
was. It listens where the contract says: PORT (a port, or the path of a Unix socket) or
descriptor 3, and speaks sd_notify if anybody listens to that.
"""

import asyncio
import json
import os
import signal
import socket
import time

WHOAMI = json.dumps(
    {
        "slot": os.environ.get("HOMESCAR_SLOT"),
        "generation": int(os.environ.get("HOMESCAR_GENERATION", "0")),
        "pid": os.getpid(),
    }
)


class Notify:
    """The worker's end of sd_notify, which is one datagram a message."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET")
        self._socket = None
        if path:
            if path.startswith("@"):
                path = "\0" + path[1:]
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.connect(path)

    def send(self, message: str) -> None:
        if self._socket:
            self._socket.send(message.encode())

    async def feed_watchdog(self) -> None:
        """From within the event loop, so that a loop which stands still is found."""
        every = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
        if not every or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return
        while True:
            self.send("WATCHDOG=1")
            await asyncio.sleep(every / 2)


class Connections:
    """Those that are open, to be ended in order."""

    def __init__(self) -> None:
        self._open: dict[asyncio.StreamWriter, asyncio.Task] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()
        try:
            while line := await reader.readline():
                match line.decode().split():
                    case ["whoami"]:
                        line = WHOAMI.encode() + b"\n"
                    case ["block", seconds]:
                        time.sleep(float(seconds))
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            del self._open[writer]
            writer.close()

    async def end(self) -> None:
        tasks = list(self._open.values())
        for writer in self._open:
            writer.close()
        await asyncio.gather(*tasks)


async def listen(connections: Connections) -> asyncio.Server:
    if "LISTEN_FDS" in os.environ:
        count, pid = os.environ["LISTEN_FDS"], os.environ.get("LISTEN_PID")
        if count != "1" or pid != str(os.getpid()):
            raise SystemExit(f"not for me: LISTEN_FDS={count} LISTEN_PID={pid}")
        return await asyncio.start_server(connections.serve, sock=socket.socket(fileno=3))
    port = os.environ["PORT"]
    if "/" in port:
        return await asyncio.start_unix_server(connections.serve, port)
    return await asyncio.start_server(connections.serve, "127.0.0.1", int(port))


async def main() -> None:
    term = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, term.set)
    notify, connections = Notify(), Connections()
    server = await listen(connections)
    notify.send("READY=1\nSTATUS=serving lines")
    feeding = asyncio.create_task(notify.feed_watchdog())
    await term.wait()
    notify.send("STOPPING=1")
    server.close()
    await connections.end()
    feeding.cancel()


asyncio.run(main())
