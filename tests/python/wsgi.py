"""A WSGI app as people write them: it knows nothing of sockets, its server does."""

import json
import os
import time

WHOAMI = {
    "slot": os.environ.get("HOMESCAR_SLOT"),
    "generation": int(os.environ.get("HOMESCAR_GENERATION", "0")),
}


def app(environ, start_response):
    # "/slow/5" takes so many seconds.
    if environ["PATH_INFO"].startswith("/slow/"):
        time.sleep(float(environ["PATH_INFO"].removeprefix("/slow/")))
    # The process that serves, which gunicorn forks after it has set itself up.
    body = json.dumps(WHOAMI | {"pid": os.getpid()}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
