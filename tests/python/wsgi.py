"""A WSGI app as people write them: it knows nothing of sockets, its server does."""

import json
import os

WHOAMI = {
    "slot": os.environ.get("HOMESCAR_SLOT"),
    "generation": int(os.environ.get("HOMESCAR_GENERATION", "0")),
}


def app(environ, start_response):
    # The process that serves, which gunicorn forks after it has set itself up.
    body = json.dumps(WHOAMI | {"pid": os.getpid()}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
