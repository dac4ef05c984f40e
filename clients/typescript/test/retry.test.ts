import assert from "node:assert/strict";
import { createServer } from "node:net";
import { test, type TestContext } from "node:test";

import { isOrchError, Orch, type RetryPolicy } from "../src/index.js";
import { failure, serve } from "./server.js";

/** waits records the waits between attempts, in milliseconds, and ends each at once. */
function waits(t: TestContext): number[] {
  const all: number[] = [];
  t.mock.method(globalThis, "setTimeout", (done: () => void, ms: number) => {
    all.push(ms);
    queueMicrotask(done);
  });
  return all;
}

/** An error as Node's fetch throws it. */
function failed(code: string): Error {
  return new TypeError("fetch failed", { cause: Object.assign(new Error(code), { code }) });
}

/** scripted is a fetch that gives answers in their order: an error, or "status Retry-After", "proxy-status". */
function scripted(answers: (string | Error)[]): { calls: () => number; fetch: typeof globalThis.fetch } {
  let calls = 0;
  const fetch = async (): Promise<Response> => {
    const next = answers[Math.min(calls++, answers.length - 1)];
    if (next === undefined || next instanceof Error) {
      throw next;
    }
    const [status = "", after] = next.replace("proxy-", "").split(" ");
    const body = next.startsWith("proxy-") ? "<html>" : JSON.stringify(status === "200" ? {} : failure("BACKEND_UNAVAILABLE"));
    return new Response(body, { status: Number(status), headers: { "Content-Type": "application/json", ...(after && { "Retry-After": after }) } });
  };
  return { calls: () => calls, fetch };
}

const s = 1000;
const policy: RetryPolicy = { attempts: 4, minWaitMs: s, maxWaitMs: 10 * s };
const get = (orch: Orch) => orch.engine("u");
const start = (orch: Orch) => orch.start("u");
const refused = failed("ECONNREFUSED");
const reset = failed("ECONNRESET");

// The table of the Go client's TestRetry. The waits are the least ones; twice that is the most.
const table: Record<string, [RetryPolicy | undefined, (orch: Orch) => Promise<unknown>, (string | Error)[], calls: number, ok: boolean, waits?: number[]]> = {
  "OK at once": [policy, get, ["200"], 1, true, []],
  "without a policy": [undefined, get, ["503 1", "200"], 1, false],
  "503": [policy, get, ["503 2", "503 3", "200"], 3, true, [2 * s, 3 * s]],
  "429": [policy, start, ["429 2", "200"], 2, true, [2 * s]],
  "503 of a start": [policy, start, ["503 1", "200"], 2, true, [s]],
  "without Retry-After": [policy, get, ["503", "503", "503", "200"], 4, true, [s / 2, s, 2 * s]],
  "too often": [policy, get, ["503 1"], 4, false],
  "a wait that is too long": [policy, get, ["503 11", "200"], 1, false],
  "409": [policy, get, ["409 1", "200"], 1, false],
  "500": [policy, get, ["500", "200"], 1, false],
  "502": [policy, get, ["502", "200"], 1, false],
  "a proxy's 503, read": [policy, get, ["proxy-503 1", "200"], 2, true],
  "a proxy's 503, start": [policy, start, ["proxy-503 1", "200"], 1, false],
  "a proxy's 502, read": [policy, get, ["proxy-502", "200"], 1, false],
  "refused, read": [policy, get, [refused, "200"], 2, true],
  "refused, start: nothing sent": [policy, start, [refused, "200"], 2, true],
  "broken, read": [policy, get, [reset, failed("UND_ERR_SOCKET"), "200"], 3, true],
  "broken, start": [policy, start, [reset, "200"], 1, false],
  "broken, provision": [policy, (orch) => orch.provision("u"), [reset, "200"], 1, false],
  "broken, provision with a key": [policy, (orch) => orch.provision("u", { idempotencyKey: "k" }), [reset, "200"], 2, true],
  "broken, admit": [policy, (orch) => orch.admit("u", { autoProvision: true }), [reset, "200"], 2, true],
  "broken, rotate": [policy, (orch) => orch.rotateKey("u"), [reset, "200"], 1, false],
  "broken, destroy": [policy, (orch) => orch.destroy("u"), [reset, "200"], 1, false],
  "an unknown name": [policy, get, [failed("ENOTFOUND"), "200"], 1, false],
  "a timeout that comes first": [policy, (orch) => orch.engine("u", { timeoutMs: 60 * s }), ["503 9", "503 9", "200"], 3, true],
  "a wait beyond the timeout": [policy, (orch) => orch.engine("u", { timeoutMs: 5 * s }), ["503 9", "200"], 1, false],
};

for (const [name, [retry, call, answers, calls, ok, want]] of Object.entries(table)) {
  test(`retry: ${name}`, async (t) => {
    const waited = waits(t);
    const script = scripted(answers);
    const orch = new Orch({ baseUrl: "http://h", platformKey: "pk", retry, fetch: script.fetch });
    const result = await call(orch).then(() => true, () => false);
    assert.deepEqual([script.calls(), result], [calls, ok]);
    for (const [i, least] of (want ?? []).entries()) {
      const got = waited[i] ?? 0;
      assert(got >= least && got <= 2 * least, `wait ${i} was ${got} ms, want ${least}`);
    }
  });
}

test("nobody listens", async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  // localhost has two addresses on most machines, and then an error for each.
  for (const host of ["127.0.0.1", "localhost"]) {
    let calls = 0;
    const fetch: typeof globalThis.fetch = (...of) => (calls++, globalThis.fetch(...of));
    await assert.rejects(start(new Orch({ baseUrl: `http://${host}:${port}`, platformKey: "pk", fetch, retry: { attempts: 3, minWaitMs: 1 } })), host);
    assert.equal(calls, 3, host);
  }
});

test("the connection breaks, before the response and within it", async (t) => {
  for (const part of ["", `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{`]) {
    for (const [call, calls] of [[get, 2], [start, 1]] as const) {
      let n = 0;
      const baseUrl = await serve(t, (request, response) => {
        if (++n > 1) {
          response.writeHead(200, { "Content-Type": "application/json" }).end("{}");
          return;
        }
        request.socket.end(part);
      });
      await call(new Orch({ baseUrl, platformKey: "pk", retry: { attempts: 3, minWaitMs: 1 } })).catch(() => undefined);
      assert.equal(n, calls, part);
    }
  }
});

test("a timeout ends a call, and a signal ends a wait", async (t) => {
  const baseUrl = await serve(t, () => undefined); // it never responds
  const slow = new Orch({ baseUrl, platformKey: "pk", timeoutMs: 20, retry: policy });
  await assert.rejects(slow.engine("u"), { name: "TimeoutError" });
  const script = scripted(["503 9", "200"]);
  const orch = new Orch({ baseUrl: "http://h", platformKey: "pk", retry: policy, fetch: script.fetch });
  const stop = new AbortController();
  const call = orch.engine("u", { signal: stop.signal });
  setImmediate(() => stop.abort(new Error("enough")));
  await assert.rejects(call, { message: "enough" });
  assert.equal(script.calls(), 1);
});

test("the last error is thrown", async (t) => {
  waits(t);
  const script = scripted([refused, "503 1"]);
  const err: unknown = await get(new Orch({ baseUrl: "http://h", platformKey: "pk", retry: { attempts: 2 }, fetch: script.fetch })).catch((e: unknown) => e);
  assert(isOrchError(err, "BACKEND_UNAVAILABLE"));
});
