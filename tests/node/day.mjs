// The Node worker of a day in the life: plain `http`, `ws` and socket.io on one port, which leaves in
// good order; nothing of homescar in it. How it begins says the file MANNERS, as a release would that
// is good or broken in some way.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { Server } from "socket.io";
import { WebSocketServer } from "ws";

const { HOMESCAR_SLOT, HOMESCAR_GENERATION, MANNERS, PORT } = process.env;
const manners = readFileSync(MANNERS, "utf8").trim();
const who = { slot: HOMESCAR_SLOT, generation: Number(HOMESCAR_GENERATION), pid: process.pid };
const whoami = JSON.stringify(who);
let leaving = false;

const server = createServer((request, response) => {
  // The last answer of a connection that is kept.
  if (leaving) response.setHeader("connection", "close");
  if (request.url === "/health" && manners === "500") response.statusCode = 500;
  response.end(whoami);
});
server.keepAliveTimeout = 60_000;

const sockets = new WebSocketServer({ noServer: true });
sockets.on("connection", (socket) => socket.on("message", () => socket.send(whoami)));
const io = new Server(server, { pingInterval: 500, destroyUpgrade: false });
io.on("connection", (socket) => socket.on("who", (answer) => answer(who)));
server.on("upgrade", (request, socket, head) => {
  if (request.url !== "/ws") return;
  sockets.handleUpgrade(request, socket, head, (opened) => sockets.emit("connection", opened));
});

// No new connection; what is under way is finished; whoever has a session is told.
const leave = () => {
  if (leaving) return;
  leaving = true;
  // A session that was begun later has timers.
  server.close(() => process.exit());
  for (const socket of sockets.clients) socket.close(1012, "restart");
  io.engine.close();
};
process.on("disconnect", leave);
process.on("SIGTERM", leave);

const breaks = {
  good() {},
  500() {},
  crash() {
    setTimeout(() => {
      console.error("no such table");
      process.exit(3);
    }, 3000);
  },
  // More than it may have (--max-old-space-size), in few steps: V8 ends the process soon, also on a
  // busy machine.
  memory() {
    const all = [];
    for (;;) all.push(new Array(4_000_000).fill(all.length));
  },
};
if (manners === "never") setInterval(() => {}, 1000);
else server.listen(Number(PORT ?? 3000), breaks[manners]);
