// What the tests are told in: a shop of its own for each, a browser, and waiting for what must come.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { after, before, test } from 'node:test';
import { openBrowser } from './browser.mjs';
import { openShop } from './stub.mjs';

export const PATIENCE_MS = 20_000; // a loaded machine is slow, and a wait that succeeds costs nothing
export const ORDER = '0190a000-0000-7000-8000-00000000abcd';
export const FIRST = '0190a000-0000-7000-8000-000000000000'; // sales, the second a day later
export const SECOND = '0190a527-0000-7000-8000-000000000000';
export const HOUR_MS = 3_600_000;

let browser;
before(async () => {
  browser = await openBrowser();
});
after(() => browser?.close());

/** A test with a shop of its own; `visit` opens its page. */
export function pageTest(name, body) {
  test(name, async (t) => {
    const shop = await openShop();
    try {
      await body({ shop, visit: ({ query = '', ...options } = {}) => visitPage(t, shop.url + query, options) });
    } finally {
      t.after(() => shop.close()); // after the pages, which would complain
    }
  });
}

/** A page in a browser context of its own: another buyer. Whatever it complains of fails the test, unless `expected`. */
export async function visitPage(t, url, { init, expected = null, ...options } = {}) {
  const context = await browser.newContext({ locale: 'en-US', ...options });
  const complaints = [];
  context.on('weberror', (error) => expected?.test(String(error.error())) || complaints.push(String(error.error())));
  context.on('console', (message) => {
    // The browser logs every refused or failed request by itself; the scripts answer with many.
    const ofTheNetwork = message.text().startsWith('Failed to load resource') && message.location().url.includes('/seckill/');
    if (['error', 'warning'].includes(message.type()) && !ofTheNetwork && !expected?.test(message.text())) complaints.push(message.text());
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(complaints, [], 'the browser complained (script error, console error, or Content-Security-Policy)');
  });
  if (init) await context.addInitScript(init);
  const page = await context.newPage();
  await page.goto(url);
  return page;
}

export async function buy(page) {
  await page.locator('#buy[aria-disabled="false"]').click({ timeout: PATIENCE_MS });
}

export async function canBuy(page) {
  return (await page.locator('#buy').getAttribute('aria-disabled')) === 'false';
}

export function text(page, selector) {
  return page.locator(selector).textContent();
}

export async function digits(page) {
  const cells = await page.locator('#clock li').allTextContents();
  return cells.map((cell) => cell.match(/\d+/)[0]).join(':');
}

export async function sees(page, selector, wanted) {
  let seen;
  await until(
    () => `${selector} to read “${wanted}”; it reads “${seen}”`,
    async () => {
      seen = await text(page, selector);
      return wanted instanceof RegExp ? wanted.test(seen) : seen === wanted;
    },
  );
}

export async function until(what, isSo) {
  const deadline = performance.now() + PATIENCE_MS;
  while (!(await isSo())) {
    if (performance.now() > deadline) assert.fail(`waited in vain for ${typeof what === 'function' ? what() : what}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

export function setHidden(page, hidden) {
  return page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { value, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
}

export function keys(shop) {
  return new Set(shop.attempts.map((attempt) => attempt.key));
}

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}
