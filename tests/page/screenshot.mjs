// Makes the README's picture: node screenshot.mjs OUT.png [URL]; without URL, of a page with scripted answers.

import { openBrowser } from './browser.mjs';
import { openShop } from './stub.mjs';

const [out, url] = process.argv.slice(2);
if (!out) {
  console.error('usage: node screenshot.mjs OUT.png [URL]');
  process.exit(64);
}

const browser = await openBrowser();
// 17 minutes and 46 seconds to go: open, with a clock that has something to show.
const shop = url ? null : await openShop({ count: { closesAt: Date.now() + 1_066_000 } });
try {
  const page = await browser.newPage({
    viewport: { width: 1100, height: 760 },
    deviceScaleFactor: 2,
    locale: 'en-US',
    colorScheme: 'light',
    reducedMotion: 'reduce',
  });
  await page.goto(url ?? shop.url);
  await page.locator('#chip[data-state="open"]').waitFor();
  await page.screenshot({ path: out });
} finally {
  await browser.close();
  await shop?.close();
}
