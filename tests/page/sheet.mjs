// Makes the contact sheet: every state of the page, in both languages, light and dark, on a phone and on a
// desktop, in one picture. node sheet.mjs OUT.png

import { openBrowser } from './browser.mjs';
import { html, late, openShop, pending, problem, silence, success } from './stub.mjs';

const [out] = process.argv.slice(2);
if (!out) {
  console.error('usage: node sheet.mjs OUT.png');
  process.exit(64);
}

const ORDER = '01a1fdcb-4457-7032-a10e-ed8e0c8bf887';
const HOUR_MS = 3_600_000;

/** A name, what the shop is like, and what to do when the page is there. */
const STATES = [
  ['opening in days', { opensAt: 52 * HOUR_MS }],
  ['opening in minutes', { opensAt: 600_000 }],
  ['open', { closesAt: HOUR_MS / 4 }],
  ['pressed', {}, press, [late(60_000, silence)]],
  ['bought', {}, press, [success(ORDER)]],
  ['pending', {}, press, Array(9).fill(pending(ORDER))],
  ['sold out', { state: 'sold_out', num: 0 }],
  ['closed', { state: 'closed' }],
  ['not on sale', { state: 'not_on_sale', num: 0 }],
  ['too many', {}, press, Array(9).fill(problem(503, 'busy', { 'Retry-After': '60' }))],
  ['something in between', {}, press, Array(9).fill(html(403, { 'Retry-After': '60' }))],
  ['unavailable', { state: 'unavailable', num: 0 }],
  ['unreachable', {}, (shop) => { shop.down = true; }],
];

const browser = await openBrowser();
const shots = [];
for (const [form, viewport] of [['phone', { width: 360, height: 640 }], ['desktop', { width: 1000, height: 690 }]]) {
  for (const locale of ['zh-CN', 'en-US']) {
    for (const colorScheme of ['light', 'dark']) {
      const row = await Promise.all(STATES.map((state) => shoot(state, { viewport, locale, colorScheme, reducedMotion: 'reduce' })));
      shots.push({ title: `${form}, ${locale}, ${colorScheme}`, width: viewport.width / 2, row });
    }
  }
}
const sheet = await browser.newPage({ viewport: { width: 2_640, height: 900 } });
await sheet.setContent(`<body style="margin:16px;font:14px sans-serif">${shots.map(({ title, width, row }) => `<h2>${title}</h2>
  <div style="display:flex;flex-wrap:wrap;gap:8px">${row.map(({ name, png }) => `<figure style="margin:0"><img width="${width}" src="data:image/png;base64,${png}"><figcaption>${name}</figcaption></figure>`).join('')}</div>`).join('')}`);
await sheet.screenshot({ path: out, fullPage: true });
await browser.close();

async function shoot([name, { opensAt, closesAt, ...count }, then, answers = []], options) {
  const shop = await openShop({ answers: [...answers], count: { ...count, opensAt: opensAt ? Date.now() + opensAt : null, closesAt: closesAt ? Date.now() + closesAt : null } });
  const context = await browser.newContext(options);
  const page = await context.newPage();
  await page.goto(shop.url);
  await page.locator('#chip:not([data-state="loading"])').waitFor();
  await then?.(shop, page);
  await page.waitForTimeout(1_500);
  const png = (await page.screenshot()).toString('base64');
  await context.close();
  await shop.close();
  return { name, png };
}

async function press(shop, page) {
  await page.locator('#buy').click();
}
