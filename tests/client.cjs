// What a Node.js client does with the store, told as JSON on standard output; tests/test_clients.py compares it.
// Arguments: the library (iovalkey or redis), the protocol (2 or 3) and the port.
'use strict';

const [library, protocol, port] = process.argv.slice(2);
const ROW = 'fs:v1:profile:u1';
const OTHER = 'fs:v1:profile:u2';

/** One face for both libraries: `call` answers text, `bytes` answers a Buffer, `subscribe` hands over messages. */
const connectors = {
  async iovalkey() {
    const Valkey = require('iovalkey');
    const client = new Valkey({ host: '127.0.0.1', port: Number(port), maxRetriesPerRequest: 1 });
    const subscriber = client.duplicate();
    return {
      call: (...words) => client.call(...words),
      bytes: (...words) => client.callBuffer(...words),
      async pipeline(calls) {
        const pipeline = client.pipeline();
        for (const words of calls) pipeline.call(...words);
        return (await pipeline.exec()).map(([error, reply]) => error ?? reply);
      },
      async subscribe(channel, listen) {
        subscriber.on('message', (_, message) => listen(message));
        await subscriber.subscribe(channel);
      },
      close: () => Promise.all([client.quit(), subscriber.quit()]),
    };
  },
  async redis() {
    const { createClient, RESP_TYPES } = require('redis');
    const client = createClient({ RESP: Number(protocol), socket: { host: '127.0.0.1', port: Number(port) } });
    const subscriber = client.duplicate();
    await Promise.all([client.connect(), subscriber.connect()]);
    const binary = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
    return {
      call: (...words) => client.sendCommand(words.map((word) => (Buffer.isBuffer(word) ? word : String(word)))),
      bytes: (...words) => binary.sendCommand(words.map(String)),
      pipeline: (calls) => Promise.all(calls.map((words) => client.sendCommand(words.map(String)))),
      subscribe: (channel, listen) => subscriber.subscribe(channel, listen),
      close: () => Promise.all([client.close(), subscriber.close()]),
    };
  },
};

/** A map is an object in RESP3 and a flat list in RESP2. */
function asMap(reply) {
  if (!Array.isArray(reply)) return Object.fromEntries(Object.entries(reply));
  return Object.fromEntries(Array.from({ length: reply.length / 2 }, (_, i) => [reply[2 * i], reply[2 * i + 1]]));
}

async function until(ready) {
  for (let tries = 0; tries < 1000; tries++) {
    const answer = await ready();
    if (answer) return answer;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error('waited in vain');
}

async function main() {
  const client = await connectors[library]();
  const { call } = client;
  const told = {};

  await call('FS.REGISTER', 'made', 'JSON', JSON.stringify({ entity: 'user', schema: { age: 'INT' } }));
  await call('FS.PUBLISH', 'fs:v1:made:u1', 'age', '5');

  const heard = [];
  await client.subscribe(`__keyspace@0__:${ROW}`, (message) => heard.push(message));
  const vector = Buffer.from(new Float32Array([0.1, -2, 3]).buffer);
  const words = ['age', '42', 'score', '0.5', 'ok', 'true', 'name', 'grün', 'seen', '1700000000000'];
  told.ids = [await call('FS.PUBLISH', ROW, ...words, 'emb', vector, 'tags', '[1,"a"]')];

  told.row = asMap(await call('FS.GET', ROW));
  told.rows = await call('FS.MGET', 'age,score', ROW, OTHER);
  told.status = asMap(await call('FS.GET', OTHER, 'WITHSTATUS', 'age'));
  const blob = await client.bytes('FS.TENSOR', 'age,score,emb', ROW);
  told.tensor = Array.from(new Float32Array(Uint8Array.from(blob).buffer));

  await call('FS.DEL', ROW);
  told.heard = await until(() => heard.length >= 2 && heard);

  await call('XADD', 'fs:stream:profile', '*', 'entity_id', 'u9', 'features', '{"age":9}');
  told.consumed = await until(() => call('HGET', 'fs:v1:profile:u9', 'age'));

  const calls = [0, 1, 2, 3, 4].flatMap((i) => [['FS.PUBLISH', OTHER, 'age', i], ['FS.MGET', 'age', OTHER]]);
  told.pipeline = (await client.pipeline(calls)).filter((_, i) => i % 2 === 1);
  told.refusal = await call('FS.PUBLISH', OTHER, 'age', 'x').then(
    () => 'taken',
    (error) => error.message,
  );

  await client.close();
  console.log(JSON.stringify(told));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
