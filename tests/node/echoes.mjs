// A worker with plain HTTP and ws, for clients of all kinds; nothing of homescar in it.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const server = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://a");
  if (pathname === "/echo") {
    response.writeHead(200, { "content-type": "application/octet-stream" });
    request.pipe(response);
    return;
  }
  if (pathname === "/bytes") {
    const bytes = Buffer.alloc(Number(searchParams.get("count")), "x");
    response.end(bytes);
    return;
  }
  if (pathname === "/trailers") {
    response.writeHead(200, { trailer: "x-sum" });
    response.write("body");
    response.addTrailers({ "x-sum": "7" });
    response.end();
    return;
  }
  response.end(JSON.stringify({ slot: process.env.HOMESCAR_SLOT, headers: request.headers }));
});
const sockets = new WebSocketServer({ server });
sockets.on("connection", (socket) => {
  socket.on("message", (data, binary) => socket.send(data, { binary }));
});
server.listen(Number(process.env.PORT));
