// A shop made of scripted answers: serves the page as the program does, and says what a test tells it to.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';

const STATIC = new URL('../../static/', import.meta.url);
const CONTENT_TYPES = { html: 'text/html; charset=utf-8', js: 'text/javascript; charset=utf-8', css: 'text/css; charset=utf-8', svg: 'image/svg+xml' };

/**
 * Opens a shop. What a test may set at any time:
 *
 * - `count`: members of the getCount answer; until `opensAt` its state is `not_open`;
 * - `aheadMs`: how far the shop's clock is ahead of the browser's;
 * - `down`: every question ends in a closed connection;
 * - `answers`: what the next attempts are told, in order (`success` when there is none); each a function
 *   that returns `{status, headers, body}`, or a promise of it;
 * - `keptMs`: how long a cache in front gives out the same getCount answer, and answers nothing else;
 * - `lost`: files that answer 503;
 * - `orders`: what `/seckill/orders/…` tells, by order number; without one, 404.
 *
 * What it may read: `polls` and `attempts`, one entry a request.
 */
export async function openShop(settings = {}) {
  const shop = {
    aheadMs: 0,
    down: false,
    answers: [],
    orders: {},
    keptMs: 0,
    lost: [],
    polls: [],
    attempts: [],
    sold: new Map(), // a key that bought is told the same again
    ...settings,
    count: { num: 873, total: 1000, state: 'open', epoch: 'first', opensAt: null, closesAt: null, nextPollMs: 300, ...settings.count },
    now: () => Date.now() + shop.aheadMs,
  };
  const server = createServer((request, response) => {
    const answer = answerTo(shop, request);
    if (answer === null) return request.socket.destroy();
    if (answer instanceof Promise) return answer.then((it) => send(response, it));
    send(response, answer);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  shop.url = `http://127.0.0.1:${server.address().port}/`;
  shop.close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return shop;
}

export function success(order, num = 872, epoch = undefined) {
  return () => ({ status: 200, body: { code: 'success', messages: `购买成功，还剩下${num}个`, num, order, epoch } });
}

export function soldOut() {
  return { status: 200, body: { code: 'sold_out', messages: '抢完了', num: 0 } };
}

export function pending(order, epoch = undefined) {
  return () => ({ status: 202, headers: { Location: `orders/${order}` }, body: { code: 'pending', messages: '正在确认', order, epoch } });
}

export function problem(status, code, headers = {}) {
  return () => ({ status, headers: { 'Content-Type': 'application/problem+json', ...headers }, body: { type: 'about:blank', status, code, messages: code } });
}

/** What something in between says, which knows nothing of the shop. */
export function html(status, headers = {}) {
  return () => ({ status, headers: { 'Content-Type': 'text/html', ...headers }, body: '<h1>Request blocked</h1>' });
}

/** The answer breaks off. (Were there none at all, the browser itself might send the request once more.) */
export function silence() {
  return { status: 200, body: undefined };
}

/** `answer`, `ms` later. */
export function late(ms, answer) {
  return async () => {
    await new Promise((resolve) => setTimeout(resolve, ms).unref());
    return answer();
  };
}

function answerTo(shop, request) {
  const url = new URL(request.url, 'http://shop');
  const entry = { at: Date.now(), item: url.searchParams.get('item'), language: request.headers['accept-language'] };
  if (request.method === 'GET' && !url.pathname.startsWith('/seckill/')) {
    return shop.lost.includes(url.pathname) ? html(503)() : file(url.pathname);
  }
  if (url.pathname === '/seckill/now') return shop.down ? null : { status: 200, headers: { 'Cache-Control': 'no-store' }, body: { now: shop.now() } };
  if (url.pathname === '/seckill/getCount') {
    shop.polls.push(entry);
    if (shop.down) return null;
    if (!(shop.kept?.until > Date.now())) shop.kept = { until: Date.now() + shop.keptMs, answer: getCount(shop) };
    return shop.kept.answer;
  }
  if (url.pathname === '/seckill/seckill' && request.method === 'POST') {
    const key = request.headers['idempotency-key'];
    shop.attempts.push({ ...entry, key });
    if (shop.down) return null;
    if (shop.sold.has(key)) return shop.sold.get(key);
    const answer = (shop.answers.shift() ?? success('0190a000-0000-7000-8000-000000000001'))();
    if (answer.body?.code === 'success') shop.sold.set(key, answer);
    return answer;
  }
  const order = url.pathname.match(/^\/seckill\/orders\/(.+)$/)?.[1];
  if (order === undefined) return problem(404, 'not_found')();
  if (shop.down) return null;
  return shop.orders[order] ? { status: 200, body: { order, status: shop.orders[order] } } : problem(404, 'no_such_order')();
}

function getCount(shop) {
  const now = shop.now();
  const state = shop.count.opensAt > now ? 'not_open' : shop.count.state;
  return { status: 200, headers: { 'Cache-Control': 'public, max-age=1' }, body: { ...shop.count, state, now } };
}

async function file(path) {
  const name = path === '/' ? 'index.html' : path.slice(1);
  try {
    const body = await readFile(new URL(name, STATIC), 'utf8');
    return { status: 200, headers: { 'Content-Type': CONTENT_TYPES[name.split('.').pop()], 'Content-Security-Policy': "default-src 'self'" }, body };
  } catch {
    return problem(404, 'not_found')();
  }
}

function send(response, answer) {
  const { status, headers, body } = answer;
  response.writeHead(status, { 'Content-Type': 'application/json', ...headers });
  if (body === undefined) {
    response.flushHeaders();
    return response.socket.end();
  }
  response.end(typeof body === 'string' ? body : JSON.stringify(body));
}
