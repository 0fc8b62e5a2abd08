// Servers as people write them with well-known packages; nothing of homescar in them.
//
// node servers.mjs KIND: http, express, fastify, ws, socket.io, and applications that do odd things.
import { fork } from "node:child_process";
import cluster from "node:cluster";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

const { HOMESCAR_SLOT, HOMESCAR_GENERATION } = process.env;
const port = Number(process.env.PORT ?? 3000);
const [kind, ...rest] = process.argv.slice(2);

const who = (more = {}) => ({
  slot: HOMESCAR_SLOT,
  generation: Number(HOMESCAR_GENERATION),
  pid: process.pid,
  isWorker: cluster.isWorker,
  id: cluster.worker?.id,
  ...more,
});
const answering = (more) =>
  createServer((_, response) => {
    response.setHeader("connection", "close");
    response.end(JSON.stringify(who(more?.())));
  });

const kinds = {
  http() {
    const server = answering(() => ({ port: server.address()?.port }));
    server.listen(port);
  },

  async express() {
    const { default: express } = await import("express");
    const app = express();
    app.get("/", (_, response) => response.set("connection", "close").json(who()));
    app.listen(port);
  },

  async fastify() {
    const { default: fastify } = await import("fastify");
    const app = fastify();
    app.get("/", async (_, reply) => reply.header("connection", "close").send(who()));
    await app.listen({ port, host: "0.0.0.0" });
  },

  async ws() {
    const { WebSocketServer } = await import("ws");
    const server = answering();
    const sockets = new WebSocketServer({ server });
    sockets.on("connection", (socket) => {
      socket.on("message", () => socket.send(JSON.stringify(who())));
    });
    server.listen(port);
  },

  async "socket.io"() {
    const { Server } = await import("socket.io");
    const server = createServer();
    const io = new Server(server, { connectionStateRecovery: undefined });
    io.on("connection", (socket) => socket.on("who", (answer) => answer(who())));
    io.engine.on("connection_error", ({ code, message }) => console.log(`engine error ${code}: ${message}`));
    server.listen(port);
  },

  // Never stops talking: messages of 64 KiB, compressed, in fragments that take their time.
  async talks() {
    const { WebSocketServer } = await import("ws");
    const server = createServer();
    const sockets = new WebSocketServer({ server, perMessageDeflate: { threshold: 0 } });
    const text = Buffer.from("homescar ".repeat(2000).slice(0, 16 * 1024));
    sockets.on("connection", (socket) => {
      let sent = 0;
      const next = () => {
        if (socket.readyState !== socket.OPEN) return;
        socket.send(text, { fin: ++sent % 4 === 0, compress: true, binary: true });
        setTimeout(next, 500 + Math.random() * 500);
      };
      next();
    });
    server.listen(port);
  },

  // On another port than the listener's.
  other() {
    answering().listen(Number(rest[0]));
  },

  // One for people, one for the operator, which comes first.
  several() {
    answering(() => ({ admin: true })).listen(Number(rest[0]), "127.0.0.1");
    answering(() => ({ admin: false })).listen(port);
  },

  never() {
    setInterval(() => {}, 1000);
  },

  // Ready only when it says so.
  slow() {
    answering().listen(port, () => setTimeout(() => process.send("ready"), Number(rest[0])));
  },

  // As PM2 has it: no handler of TERM that ends it, but one of the message.
  shutdown() {
    process.on("SIGTERM", () => {});
    process.on("message", (message) => {
      if (message === "shutdown") process.exit(7);
    });
    answering().listen(port);
  },

  // Forks a child of its own, which must not take itself for a worker of ours.
  forks() {
    const child = fork(fileURLToPath(import.meta.url), ["child"]);
    child.on("message", (said) => answering(() => ({ child: said })).listen(port));
  },
  child() {
    process.send({ isWorker: cluster.isWorker, connected: process.connected });
    process.on("disconnect", () => process.exit());
  },

  disconnects() {
    const server = createServer((_, response) => {
      response.setHeader("connection", "close");
      response.end(JSON.stringify(who()), () => cluster.worker.disconnect());
    });
    server.listen(port);
  },

  // Sends its primary far too much.
  floods() {
    process.send("x".repeat(20_000_000));
    for (let n = 0; n < 20_000; n++) process.send({ n, text: "x".repeat(100) });
    answering().listen(port);
  },

  // Stands still for as long as it is asked to (/block?MS), and tells what it saw on its channel.
  blocks() {
    const saw = [];
    process.on("message", (message) => saw.push(message));
    const server = createServer((request, response) => {
      const until = Date.now() + Number(request.url.split("?")[1] ?? 0);
      while (Date.now() < until);
      response.setHeader("connection", "close");
      response.end(JSON.stringify(who({ saw })));
    });
    server.listen(port);
  },

  // Opens another server whenever it is asked to, and closes it.
  opens() {
    createServer((_, response) => {
      const until = Date.now() + 1500;
      while (Date.now() < until);
      const more = createServer().listen(0, () => {
        const { port } = more.address();
        more.close();
        response.setHeader("connection", "close");
        response.end(JSON.stringify(who({ more: port })));
      });
    }).listen(port);
  },

  unix() {
    createServer()
      .on("error", (error) => answering(() => ({ code: error.code })).listen(port))
      .listen(`/tmp/homescar-test-${process.pid}.sock`);
  },
};
await kinds[kind]();
