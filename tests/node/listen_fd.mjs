// A Node server that listens on the descriptor it is given, and on nothing else.
import { createServer } from "node:http";

const { HOMESCAR_SLOT, HOMESCAR_GENERATION } = process.env;
const whoami = JSON.stringify({
  slot: HOMESCAR_SLOT,
  generation: Number(HOMESCAR_GENERATION),
  pid: process.pid,
});

const server = createServer((request, response) => response.end(whoami));
server.listen({ fd: 3 });
process.on("SIGTERM", () => server.close());
