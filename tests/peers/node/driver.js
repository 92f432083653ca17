// BullMQ on Node: bulk adds of 1,000, one process with a concurrency of 100.
//
// Called as `worker`, `submit KIND N` or `idle KIND N`; KIND is `jobs`, `chains` or `fanouts`.

const { FlowProducer, Queue, QueueEvents, Worker } = require('bullmq');

const CONCURRENCY = 100;
const BULK = 1000;
const FLOWS = 100;
const CHAIN = 10;
const WIDTH = 50;

const { hostname, port } = new URL(process.env.PEER_REDIS);
const connection = { host: hostname, port: Number(port) };
const data = { p: 'x'.repeat(90) };
const now = () => process.hrtime.bigint();
const ms = (from, to) => Number(to - from) / 1e6;
const say = (answer) => console.log(JSON.stringify(answer));

// The first tenth warms up and does not count.
function latencies(all) {
  const sorted = all.slice(Math.floor(all.length / 10)).sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? null;
  return { p50: at(0.5), p99: at(0.99) };
}

const step = (name, children) => ({ name, queueName: 'q', data, children });

// A flow grows from its last step to its first.
function chain() {
  let flow = step('step');
  for (let i = 1; i < CHAIN; i++) flow = step('step', [flow]);
  return flow;
}

// The part of a fan-out that waits for its first step, which adds it: a flow is a tree that ends in one job.
const fan = () => step('step', Array.from({ length: WIDTH }, () => step('step')));

function work() {
  const flows = new FlowProducer({ connection });
  new Worker('q', async (job) => {
    if (job.name === 'stamp') return now().toString();
    if (job.name === 'first') await flows.add(fan());
    return 'ok';
  }, { connection, concurrency: CONCURRENCY });
}

async function addBulk(queue, name, count) {
  const underWay = [];
  for (let at = 0; at < count; at += BULK) {
    underWay.push(queue.addBulk(Array.from({ length: Math.min(BULK, count - at) }, () => ({ name, data }))));
    if (underWay.length >= 2) await underWay.shift();
  }
  await Promise.all(underWay);
}

async function submit(kind, count) {
  const queue = new Queue('q', { connection });
  const flows = new FlowProducer({ connection });
  await queue.waitUntilReady();
  const began = now();
  if (kind === 'jobs') await addBulk(queue, 'step', count);
  if (kind === 'fanouts') await addBulk(queue, 'first', count);
  if (kind === 'chains') {
    for (let at = 0; at < count; at += FLOWS) {
      await flows.addBulk(Array.from({ length: Math.min(FLOWS, count - at) }, chain));
    }
  }
  say({ began_ns: Number(began), seconds: ms(began, now()) / 1e3 });
}

async function idle(kind, count) {
  const queue = new Queue('q', { connection });
  const flows = new FlowProducer({ connection });
  const events = new QueueEvents('q', { connection });
  await events.waitUntilReady();
  const starts = [];
  const ends = [];
  for (let i = 0; i < count; i++) {
    const began = now();
    const job = kind === 'chains' ? (await flows.add(chain())).job : await queue.add('stamp', data);
    const value = await job.waitUntilFinished(events);
    ends.push(ms(began, now()));
    if (kind === 'jobs') starts.push(ms(began, BigInt(value)));
  }
  say({ start_ms: latencies(starts), end_ms: latencies(ends) });
}

async function main() {
  const [verb, kind, count] = process.argv.slice(2);
  if (verb === 'worker') return work();
  await (verb === 'submit' ? submit : idle)(kind, Number(count));
  process.exit(0);
}

main();
