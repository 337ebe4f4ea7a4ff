// Old browsers, lost files, kept answers, narrow windows: what the page is up against.

import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { success } from './stub.mjs';
import { HOUR_MS, ORDER, buy, canBuy, digits, pageTest, sees, text, until } from './telling.mjs';

/** Younger than the oldest browsers that must do, each by its own way. */
const YOUNGER = () => {
  delete AbortSignal.timeout;
  delete AbortSignal.any;
  delete Object.hasOwn;
  delete Array.prototype.at;
  delete String.prototype.at;
  delete Array.prototype.findLast;
  delete Array.prototype.toSorted;
  delete Promise.withResolvers;
  delete Element.prototype.checkVisibility;
  delete Crypto.prototype.randomUUID;
  Object.defineProperty(Navigator.prototype, 'locks', { value: undefined });
  window.structuredClone = undefined;
};

describe('the page, in hard times', { concurrency: 3 }, () => {
  pageTest('sells in Safari 15: nothing younger is used', async ({ shop, visit }) => {
    shop.answers = [success(ORDER)];
    const page = await visit({ init: YOUNGER });
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(await page.locator('#broken').isVisible(), false);
  });

  pageTest('an error of its own is told as that, with a way out, and not as an outage', async ({ shop, visit }) => {
    const page = await visit({ init: () => { delete window.AbortController; }, expected: /AbortController/ });
    await until('it says so', () => page.locator('#broken').isVisible());
    assert.match(await text(page, '#broken-text'), /an error of its own/);
    assert.doesNotMatch(await text(page, '#hint'), /Cannot reach/);
    assert.equal(shop.polls.length, 0);
    await page.locator('#reload').click();
    await page.waitForLoadState();
    assert.equal(page.url(), shop.url);
  });

  for (const [file, why] of [['app.js', 'does not come'], ['words.js', 'comes without its words']]) {
    pageTest(`the program ${why}: the page itself says what is on sale, and how to reload`, async ({ shop, visit }) => {
      shop.lost = [`/${file}`];
      const page = await visit({ expected: /503/ });
      await until('it says so', () => page.locator('.slow [lang=en]').isVisible());
      assert.match(await text(page, '#fallback'), /Flash sale.*First come, first served.*reload this page/s);
      shop.lost = [];
      await page.locator('.slow [lang=en] a').click();
      await sees(page, '#chip', 'On sale now');
      assert.equal(await page.locator('#fallback').isVisible(), false);
    });
  }

  for (const [width, height] of [[320, 568], [360, 640], [844, 390], [768, 1024], [1100, 760]]) {
    for (const locale of ['en-US', 'zh-CN']) {
      pageTest(`the button stands still and in view, in every state: ${width} × ${height}, ${locale}`, async ({ shop, visit }) => {
        shop.count.opensAt = shop.now() + HOUR_MS;
        const page = await visit({ viewport: { width, height }, locale, reducedMotion: 'reduce' });
        const places = {};
        const chip = () => page.locator('#chip').getAttribute('data-state');
        const look = async (name) => {
          const { x, y, width: wide, height: high } = await page.locator('#buy').boundingBox();
          places[name] = [x, y, wide, high].map(Math.round).join(' ');
          assert.ok(y >= 0 && y + high <= height, `${name}: at ${y} to ${y + high} of ${height}`);
          assert.ok((await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)) <= 0, `${name}: too wide`);
        };
        const reach = async (state, changes) => {
          Object.assign(shop.count, changes);
          await until(state, async () => (await chip()) === state);
          await look(`${state} ${JSON.stringify(changes)}`);
        };
        await reach('not_open', {});
        await reach('not_open', { opensAt: shop.now() + 100 * 24 * HOUR_MS, num: 1_234_567 });
        await reach('open', { opensAt: null, num: 100 });
        await reach('open', { num: 99, closesAt: shop.now() + HOUR_MS });
        await reach('sold_out', { num: 0, state: 'sold_out' });
        await reach('unavailable', { state: 'unavailable' });
        await reach('not_on_sale', { state: 'not_on_sale' });
        await reach('closed', { state: 'closed', closesAt: null });
        shop.down = true;
        await until('the outage', async () => (await text(page, '#hint')) !== '');
        await look('unreachable');
        assert.equal(new Set(Object.values(places)).size, 1, JSON.stringify(places, null, 1));
      });
    }
  }

  pageTest('a press a moment before the opening is held, and sent at it', async ({ shop, visit }) => {
    shop.count.opensAt = shop.now() + 4_000;
    shop.answers = [success(ORDER)];
    const page = await visit();
    await sees(page, '#chip', 'Opening soon');
    await page.evaluate((opensAt) => new Promise((pressed) => {
      const wait = setInterval(() => {
        if (Date.now() < opensAt - 200) return;
        clearInterval(wait);
        document.getElementById('buy').click();
        pressed();
      }, 5);
    }), shop.count.opensAt);
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 1);
    // As exact as half of a poll's trip: the page learns the shop's clock by it.
    assert.ok(shop.attempts[0].at >= shop.count.opensAt - 100, `sent ${shop.count.opensAt - shop.attempts[0].at} ms too early`);
  });

  pageTest('behind a cache: the countdown never steps back, and the button comes', async ({ shop, visit }) => {
    shop.keptMs = 1_000;
    shop.count.nextPollMs = 250;
    shop.count.opensAt = shop.now() + 5_000;
    const page = await visit();
    await sees(page, '#chip', 'Opening soon');
    await page.evaluate(() => {
      window.drawn = [];
      setInterval(() => window.drawn.push(document.getElementById('clock').textContent), 10);
    });
    await page.locator('#chip[data-state="open"]').waitFor();
    const drawn = await page.evaluate(() => window.drawn.map((text) => Number(text.match(/\d+(?=sec)/)?.[0])).filter((it) => !Number.isNaN(it)));
    assert.deepEqual(drawn, [...drawn].sort((a, b) => b - a), 'the digits jumped back');
    assert.equal(await canBuy(page), true);
  });

  pageTest('a text that is no item never becomes the heading; an item on sale does', async ({ shop, visit }) => {
    shop.count.nextPollMs = 250;
    const page = await visit({ query: '?item=Send%20money%20to%20me' });
    await sees(page, '#chip', 'On sale now');
    assert.equal(await text(page, '#title'), 'Flash sale');
    assert.doesNotMatch(await page.title(), /money/);
  });

  pageTest('figures from before an outage are called so', async ({ shop, visit }) => {
    const page = await visit();
    await sees(page, '#left', '873');
    shop.down = true;
    await sees(page, '#left-label', 'Units left, before the outage');
  });

  pageTest('whoever reads the countdown is not thrown out of it', async ({ shop, visit }) => {
    shop.count.opensAt = shop.now() + HOUR_MS;
    const page = await visit();
    await sees(page, '#chip', 'Opening soon');
    await page.evaluate(() => { window.cell = document.querySelector('#clock li:last-child'); window.was = window.cell.textContent; });
    await until('it has counted on', () => page.evaluate(() => window.cell.textContent !== window.was));
    assert.equal(await page.evaluate(() => window.cell.isConnected), true);
  });

  pageTest('Chinese readers see no hours that are none', async ({ shop, visit }) => {
    shop.count.opensAt = shop.now() + HOUR_MS / 4;
    const page = await visit({ locale: 'zh-CN' });
    await until('the countdown', async () => /^(15:00|14:5\d)$/.test(await digits(page)));
  });
});
