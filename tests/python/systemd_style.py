"""A program for systemd's socket activation, with nothing but the standard library.

It is as strict as sd_listen_fds(3): the socket is its own only when LISTEN_PID names it.
"""

import json
import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHOAMI = json.dumps(
    {
        "slot": os.environ.get("HOMESCAR_SLOT"),
        "generation": int(os.environ.get("HOMESCAR_GENERATION", "0")),
        "pid": os.getpid(),
    }
).encode()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(WHOAMI)))
        self.end_headers()
        self.wfile.write(WHOAMI)

    def log_message(self, *_):
        pass


count, pid = os.environ.get("LISTEN_FDS"), os.environ.get("LISTEN_PID")
if count != "1" or pid != str(os.getpid()):
    sys.exit(f"not for me: LISTEN_FDS={count} LISTEN_PID={pid}")
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
server.serve_forever()
