// A Node worker as people write them: plain `http` and the npm package `ws`, nothing of homescar.
//
// Where to listen is all that it has to find out: PORT, or descriptor 3 (LISTEN_FDS).
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const { PORT, LISTEN_FDS, LISTEN_PID, HOMESCAR_SLOT, HOMESCAR_GENERATION } = process.env;
const whoami = JSON.stringify({
  slot: HOMESCAR_SLOT,
  generation: Number(HOMESCAR_GENERATION),
  pid: process.pid,
});
let health = 200;

const server = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://worker");
  switch (pathname) {
    case "/whoami":
      return response.end(whoami);
    case "/health":
      response.statusCode = health;
      return response.end();
    case "/sick":
    case "/well":
      health = pathname === "/sick" ? 503 : 200;
      return response.end();
    case "/block": {
      // A loop that never yields: nothing else of this process runs meanwhile.
      const until = Date.now() + Number(searchParams.get("ms"));
      while (true) {
        if (Date.now() > until) return response.end();
      }
    }
    default:
      response.statusCode = 404;
      return response.end();
  }
});

// "whoami" is answered, all else comes back as it was.
const sockets = new WebSocketServer({ server });
sockets.on("connection", (socket) => {
  socket.on("message", (data, isBinary) => {
    if (!isBinary && data.toString() === "whoami") socket.send(whoami);
    else socket.send(data, { binary: isBinary });
  });
});

// The orderly end: no new connection, a Close for every socket, and then nothing keeps it running.
process.on("SIGTERM", () => {
  server.close();
  for (const socket of sockets.clients) socket.close(1012, "restart");
});

if (LISTEN_FDS === undefined) {
  server.listen(Number(PORT), "127.0.0.1");
} else {
  if (LISTEN_FDS !== "1" || LISTEN_PID !== String(process.pid)) {
    throw new Error(`not for me: LISTEN_FDS=${LISTEN_FDS} LISTEN_PID=${LISTEN_PID}`);
  }
  server.listen({ fd: 3 });
}
