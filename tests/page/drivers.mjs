// The other two browsers that people use: Debian's Firefox, spoken to by WebDriver BiDi, and WebKit, by
// WebDriver. Each opens to the same few things: `goto`, `back`, `run` (a function, in the page), `close`.

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, until } from './telling.mjs';

const FIREFOX = process.env.FIREFOX || '/usr/bin/firefox-esr';
const DEADLINE_MS = 60_000; // for one command: a browser that hangs must not hang the tests
const WEBKIT = process.env.WEBKIT_DRIVER || '/usr/bin/WebKitWebDriver';

export async function openFirefox() {
  demand(FIREFOX, 'firefox-esr', 'FIREFOX');
  const profile = await mkdtemp(join(tmpdir(), 'seckill-firefox-'));
  const port = await freePort();
  const firefox = spawn(FIREFOX, ['--headless', '--no-remote', '--profile', profile, '--remote-debugging-port', port, 'about:blank'], { stdio: 'ignore' });
  const socket = await connected(`ws://127.0.0.1:${port}/session`);
  const waiting = new Map();
  socket.addEventListener('message', ({ data }) => {
    const { id, type, result, message } = JSON.parse(data);
    waiting.get(id)?.[type === 'success' ? 'resolve' : 'reject'](result ?? new Error(message));
    waiting.delete(id);
  });
  let last = 0;
  const send = (method, params = {}) => new Promise((resolve, reject) => {
    last += 1;
    waiting.set(last, { resolve, reject });
    setTimeout(reject, DEADLINE_MS, new Error(`${method}: no answer from Firefox`)).unref();
    socket.send(JSON.stringify({ id: last, method, params }));
  });
  await send('session.new', { capabilities: {} });
  const { contexts: [{ context }] } = await send('browsingContext.getTree');
  return {
    goto: (url) => send('browsingContext.navigate', { context, url, wait: 'complete' }),
    back: () => send('browsingContext.traverseHistory', { context, delta: -1 }),
    run: async (what, ...given) => {
      const { result, exceptionDetails } = await send('script.evaluate', { expression: `(async () => JSON.stringify(await (${what})(...${JSON.stringify(given)})))()`, awaitPromise: true, target: { context } });
      if (exceptionDetails) throw new Error(exceptionDetails.text);
      return result.value === undefined ? undefined : JSON.parse(result.value);
    },
    close: async () => {
      socket.close();
      await ended(firefox);
      await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

export async function openWebKit() {
  demand(WEBKIT, 'webkit2gtk-driver', 'WEBKIT_DRIVER');
  const port = await freePort();
  // It has no way to run without a display of its own.
  const display = process.env.DISPLAY ? [] : ['xvfb-run', '-a'];
  const [command, ...rest] = [...display, WEBKIT, `--port=${port}`];
  const driver = spawn(command, rest, { stdio: 'ignore', detached: true, env: { ...process.env, WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: '1', WEBKIT_DISABLE_COMPOSITING_MODE: '1', LIBGL_ALWAYS_SOFTWARE: '1' } });
  const url = `http://127.0.0.1:${port}`;
  const send = async (method, path, body) => {
    const response = await fetch(url + path, { method, body: body && JSON.stringify(body), signal: AbortSignal.timeout(DEADLINE_MS) });
    const { value } = await response.json();
    if (!response.ok) throw new Error(`${path}: ${value?.message}`);
    return value;
  };
  await until('WebKit’s driver', () => fetch(`${url}/status`).then((response) => response.ok, () => false));
  const { sessionId } = await send('POST', '/session', { capabilities: { alwaysMatch: { 'webkitgtk:browserOptions': { binary: miniBrowser(), args: ['--automation'] } } } });
  const at = `/session/${sessionId}`;
  return {
    goto: (where) => send('POST', `${at}/url`, { url: where }),
    back: () => send('POST', `${at}/back`, {}),
    run: async (what, ...given) => {
      const value = await send('POST', `${at}/execute/async`, {
        script: `const done = arguments[arguments.length - 1]; (async () => done(JSON.stringify(await (${what})(...${JSON.stringify(given)}))))().catch((error) => done({ failed: String(error) }));`,
        args: [],
      });
      if (value?.failed) throw new Error(value.failed);
      return value === null || value === undefined ? undefined : JSON.parse(value);
    },
    close: async () => {
      await send('DELETE', at).catch(() => {});
      process.kill(-driver.pid);
    },
  };
}

function miniBrowser() {
  const found = ['4.1', '4.0', '6.0'].map((version) => `/usr/lib/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu/webkit2gtk-${version}/MiniBrowser`).find(existsSync);
  if (!found) throw new Error('no MiniBrowser: install Debian’s package webkit2gtk-driver');
  return found;
}

/** Throws when a browser is missing: a page that was not looked at in it has not passed. */
function demand(path, name, variable) {
  if (!existsSync(path)) throw new Error(`nothing at ${path}: install Debian’s package ${name}, or set ${variable}`);
}

async function connected(url) {
  let socket;
  await until(`a connection to ${url}`, () => new Promise((resolve) => {
    socket = new WebSocket(url);
    socket.addEventListener('open', () => resolve(true));
    socket.addEventListener('error', () => setTimeout(resolve, 200, false));
  }));
  return socket;
}

function ended(process) {
  return new Promise((resolve) => {
    process.once('exit', resolve);
    process.kill();
  });
}
