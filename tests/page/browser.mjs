// The browser that the page is tested in: Debian's Chromium, driven by playwright-core.

import { existsSync } from 'node:fs';
import { chromium } from 'playwright-core';

const executablePath = process.env.CHROMIUM || '/usr/bin/chromium';

/** Throws when there is no browser: a page that was not looked at has not passed. */
export function openBrowser() {
  if (!existsSync(executablePath)) {
    throw new Error(`no browser at ${executablePath}: install Debian's package chromium, or set CHROMIUM`);
  }
  return chromium.launch({
    executablePath,
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
}
