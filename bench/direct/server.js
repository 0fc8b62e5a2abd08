'use strict';
// What anybody would write. It knows nothing of homescar.
require('node:http')
  .createServer((_request, response) => response.end('hello\n'))
  .listen(Number(process.env.PORT), '127.0.0.1');
