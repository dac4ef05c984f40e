import { OrchError, UnderWay } from "./errors.js";
import { retrying, type RetryPolicy } from "./retry.js";
import type { Input, Method, OperationOf, PathOf, Result, Schemas } from "./types.js";

export interface Options {
  /** For example https://orch.example.com:8000. */
  baseUrl: string;
  /** Which calls are retried; without it: none. */
  retry?: RetryPolicy | undefined;
  /**
   * How long a call may take, in milliseconds, with all its attempts; without it: as long as
   * it takes. A change takes up to ORCH_BOOT_TIMEOUT_S + 115 s of the service.
   */
  timeoutMs?: number | undefined;
  /** Makes the requests, for example with certificates of its own; without it: the global fetch. */
  fetch?: typeof globalThis.fetch | undefined;
}

export interface CallOptions {
  /** Ends the call; it rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Instead of the client's. A call that exceeds it rejects with a DOMException `TimeoutError`. */
  timeoutMs?: number | undefined;
  /** The id of the call in the service's log and audit log: 1 to 128 characters A-Z a-z 0-9 . _ : / + = - */
  requestId?: string | undefined;
}

/** What a method says about its call, beside the operation's input. */
export interface More extends CallOptions {
  /** The user whom the call concerns. */
  user?: string | undefined;
  headers?: Record<string, string> | undefined;
  /** Repeating the call has no further effect; without it: that it is a GET. */
  repeatable?: boolean | undefined;
  /** A status other than 200 that is not an error either. */
  accepts?: number | undefined;
}

export interface Answer<T> {
  body: T;
  headers: Headers;
}

/** The only responses that are not JSON. */
const pages = new Set<string>(["/docs", "/openapi.yaml", "/metrics"]);

type Loose = { path?: Record<string, string>; query?: Record<string, unknown>; body?: unknown };

/** Transport makes calls with one key. */
export class Transport {
  readonly #options: Options;
  readonly #key: Record<string, string>;

  constructor(options: Options, key: Record<string, string>) {
    this.#options = options;
    this.#key = key;
  }

  /** call makes a call, and retries it as the policy says. */
  async call<M extends Method, P extends PathOf<M>>(method: M, path: P, input: Input<OperationOf<M, P>>, more: More = {}): Promise<Answer<Result<OperationOf<M, P>>>> {
    const { retry = {}, fetch = globalThis.fetch } = this.#options;
    const timeoutMs = more.timeoutMs ?? this.#options.timeoutMs;
    const signals = [more.signal, timeoutMs === undefined ? undefined : AbortSignal.timeout(timeoutMs)].filter((s) => s !== undefined);
    const signal = signals.length > 1 ? AbortSignal.any(signals) : signals[0];
    const url = this.#options.baseUrl.replace(/\/$/, "") + target(path, input as Loose);
    const init: RequestInit = {
      method: method.toUpperCase(),
      headers: this.#headers(input as Loose, more),
      // The service redirects nothing, and the key would be sent along.
      redirect: "manual",
      ...(signal && { signal }),
      ...(input.body !== undefined && { body: JSON.stringify(input.body) }),
    };
    const deadline = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
    return retrying(retry, { repeatable: more.repeatable ?? method === "get", deadline, signal }, async () => {
      const response = await fetch(url, init);
      const text = await response.text();
      if (!response.ok && response.status !== more.accepts) {
        throw new OrchError(response.status, response.headers, text);
      }
      const body = decoded(response, text);
      if (typeof body === "string" && !pages.has(path)) {
        throw new OrchError(response.status, response.headers, text); // of something between
      }
      if (!response.ok && typeof body === "object" && body !== null && "error" in body) {
        throw new OrchError(response.status, response.headers, text);
      }
      if (response.status === 202 && response.headers.has("Location")) {
        throw new UnderWay(body as Schemas["UnderWay"]);
      }
      return { body: body as Result<OperationOf<M, P>>, headers: response.headers };
    });
  }

  #headers(input: Loose, more: More): Record<string, string> {
    return {
      Accept: "application/json",
      ...this.#key,
      ...(input.body !== undefined && { "Content-Type": "application/json" }),
      // Proxies may rewrite the path, but not this header; the service compares the two.
      ...(more.user !== undefined && { "X-User-Id": encode("user_id", more.user) }),
      ...(more.requestId !== undefined && { "X-Request-Id": more.requestId }),
      ...more.headers,
    };
  }
}

/** target fills in a path's parameters, and appends the query parameters that are set. */
function target(path: string, { path: values = {}, query = {} }: Loose): string {
  const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => encode(name, values[name] ?? ""));
  const set = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  return set.length > 0 ? `${filled}?${new URLSearchParams(set.map(([name, value]) => [name, String(value)]))}` : filled;
}

/**
 * encode percent-encodes an id. It refuses ids that fetch would leave out of a URL, which
 * would then name another endpoint; the service has no such ids.
 */
function encode(name: string, id: string): string {
  if (id === "" || id === "." || id === "..") {
    throw new TypeError(`${name} must not be ${JSON.stringify(id)}`);
  }
  try {
    return encodeURIComponent(id);
  } catch {
    throw new TypeError(`${name} must be valid Unicode`);
  }
}

function decoded(response: Response, text: string): unknown {
  if (response.headers.get("Content-Type")?.startsWith("application/json") === false) {
    return text;
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Error("decode the response", { cause });
  }
}
