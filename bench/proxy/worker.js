'use strict';
// Sends back what comes with the number of its slot as the last byte.
const slot = Number((process.env.HOMESCAR_SLOT || process.env.SLOT).split('/').pop());
require('node:net')
  .createServer((client) => {
    client.on('data', (message) => {
      message[message.length - 1] = slot;
      client.write(message);
    });
    client.on('error', () => client.destroy());
  })
  .listen(Number(process.env.PORT), '127.0.0.1');
