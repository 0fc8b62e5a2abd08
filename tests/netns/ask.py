"""Asks a worker at port 7283 who it is: ask.py FROM TO"""

import socket
import sys
import time

source, to = sys.argv[1:]
deadline = time.monotonic() + 20
while True:
    try:
        client = socket.create_connection((to, 7283), 3, (source, 0))
    except ConnectionRefusedError:
        # Not listening yet.
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
        continue
    except TimeoutError:
        print("nobody answers")
        sys.exit()
    client.settimeout(20)
    client.sendall(b"whoami\n")
    print(client.recv(1000).decode().strip())
    sys.exit()
