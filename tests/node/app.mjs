// An application as people write it, which knows nothing of homescar: `app.listen(3000)`.
import cluster from "node:cluster";
import { createServer } from "node:http";

const { HOMESCAR_SLOT, HOMESCAR_GENERATION, PORT } = process.env;
const server = createServer((request, response) => {
  const { isWorker, worker } = cluster;
  response.setHeader("connection", "close");
  response.end(
    JSON.stringify({
      slot: HOMESCAR_SLOT,
      generation: Number(HOMESCAR_GENERATION),
      pid: process.pid,
      isWorker,
      id: worker?.id,
      port: server.address().port,
      stray: Object.keys(process.env).filter((name) => /NODE_(CHANNEL|UNIQUE)/.test(name)),
    }),
  );
});
server.listen(Number(process.argv[2] ?? PORT ?? 3000));
