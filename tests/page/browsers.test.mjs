// What differs between browsers, in all three that people use: pages that come back from the history,
// storage, missing features, where the button stands.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { openBrowser } from './browser.mjs';
import { openFirefox, openWebKit } from './drivers.mjs';
import { openShop, success } from './stub.mjs';
import { FIRST, ORDER, SECOND, keys, until } from './telling.mjs';

async function openChromium() {
  const browser = await openBrowser();
  const page = await browser.newPage();
  return {
    goto: (url) => page.goto(url),
    back: () => page.goBack(),
    run: (what, ...given) => page.evaluate(`(${what})(...${JSON.stringify(given)})`),
    close: () => browser.close(),
  };
}

for (const [name, open] of [['Chromium', openChromium], ['Firefox', openFirefox], ['WebKit', openWebKit]]) {
  describe(name, () => {
    let browser;
    before(async () => {
      browser = await open();
    });
    after(() => browser?.close());

    const text = (id) => browser.run((it) => document.getElementById(it)?.textContent, id);
    const sees = (id, wanted) => until(`${name}: ${id} to read “${wanted}”`, async () => (await text(id)) === wanted);
    const alive = () => until(`${name}: the button`, () => browser.run(() => document.getElementById('buy')?.getAttribute('aria-disabled') === 'false'));
    const press = () => browser.run(() => document.getElementById('buy').click());

    const inBrowser = (what, body) => test(what, async (t) => {
      const shop = await openShop();
      t.after(() => shop.close());
      await browser.goto(shop.url); // an origin of its own: nothing is stored yet
      await body(shop);
    });

    inBrowser('an order of a sale that the page had not heard of stays', async (shop) => {
      shop.count.epoch = FIRST;
      shop.answers = [success(ORDER, 19, SECOND)];
      await browser.goto(shop.url);
      await until('a poll', () => shop.polls.length > 2);
      await alive();
      await press();
      await sees('order', ORDER);
      Object.assign(shop.count, { epoch: SECOND, num: 19 });
      await sees('left', '19');
      await sees('order', ORDER);
      assert.equal(shop.attempts.length, 1);
    });

    inBrowser('bought, gone back: the page from the history buys no second unit', async (shop) => {
      shop.answers = [success(ORDER)];
      await alive();
      await browser.goto(`${shop.url}?again`);
      await alive();
      await press();
      await sees('order', ORDER);
      await browser.back();
      await browser.run(() => document.getElementById('buy')?.click()); // whatever it looks like yet
      await sees('order', ORDER);
      assert.equal(keys(shop).size, 1);
    });

    inBrowser('storage that is full: the page says so, and sells', async (shop) => {
      await alive();
      await browser.run(() => {
        Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };
      });
      await press();
      await until('the receipt', async () => /write the number down|抄下/.test(await text('receipt-hint')));
      await until('the attempt', () => shop.attempts.length > 0);
      assert.equal(shop.attempts.length, 1);
    });

    inBrowser('without what is younger than the oldest browsers: polls and sells', async (shop) => {
      await alive();
      await browser.run(() => {
        delete AbortSignal.timeout;
        delete Object.hasOwn;
        delete Array.prototype.at;
        Object.defineProperty(Navigator.prototype, 'locks', { value: undefined, configurable: true });
      });
      const polls = shop.polls.length;
      await until('more polls', () => shop.polls.length > polls + 1);
      await press();
      await until('the order', async () => (await text('order')) !== '');
      assert.equal(await browser.run(() => document.getElementById('broken').hidden), true);
    });

    inBrowser('the button stands where it stood, when the sale opens and counts', async (shop) => {
      const place = () => browser.run(() => {
        const { x, y, width, height } = document.getElementById('buy').getBoundingClientRect();
        return [x, y, width, height].map(Math.round).join(' ');
      });
      const places = new Set();
      for (const [state, changes] of [['not_open', { opensAt: shop.now() + 90_000_000 }], ['open', { opensAt: null, num: 100 }], ['open', { num: 99 }], ['sold_out', { num: 0, state: 'sold_out' }]]) {
        Object.assign(shop.count, changes);
        await until(`${state}, ${shop.count.num}`, () => browser.run((want, num) => document.getElementById('chip')?.dataset.state === want && document.getElementById('left').textContent === num, state, String(shop.count.num)));
        places.add(await place());
      }
      assert.equal(places.size, 1, [...places].join(' | '));
    });
  });
}
